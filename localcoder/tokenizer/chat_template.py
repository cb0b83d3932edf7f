"""The chat format that the family's instruct models were trained on, as a Jinja template, and how to tell that a file's
template cannot be it."""

from __future__ import annotations

import re

# The first system text is as the models were trained, one spelling of the company's name and all.
FAMILY_TEMPLATE = (
    "{{ bos_token }}"
    "{% set ns = namespace(has_system=false) %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.has_system = true %}{% endif %}{% endfor %}"
    "{% if not ns.has_system %}"
    "{{ 'You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, and "
    "you only answer questions related to computer science. For politically sensitive questions, security and privacy "
    "issues, and other non-computer science questions, you will refuse to answer\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + '\\n<|EOT|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

_MARKER = re.compile(r"<[|｜][^|｜\s<>]{1,40}[|｜]>")


def template_problem(template: str, known_tokens: dict[str, int]) -> str | None:
    """Why `template` cannot be how a model of this family was taught to chat, None if it can.

    Args:
        known_tokens: the vocabulary, by spelling.
    """
    for left, right in (("{%", "%}"), ("{{", "}}")):
        if template.count(left) != template.count(right):
            return f"is cut off: {template.count(left)} {left} and {template.count(right)} {right}"
    if "messages" not in template or "content" not in template:
        return "leaves out the messages"
    unknown = [marker for marker in _MARKER.findall(template) if marker not in known_tokens]
    if unknown:
        return f"uses {unknown[0]}, which is no token of this vocabulary"
    markers = [marker for marker in ("### Instruction:", "### Response:") if marker in template]
    if len(markers) == 1:
        return f"has {markers[0]!r} without its counterpart"
    if "<|EOT|>" not in template and "eos_token" not in template:
        return "never ends an answer"
    return None
