"""A drop-in for the class `Llama` of llama-cpp-python: the same arguments and results, computed by localcoder.

`from localcoder.compat.llama_cpp import Llama` takes the place of `from llama_cpp import Llama`. What it cannot do
(tools among which the model chooses, images, LoRA, other positions than the file's) it refuses; it ignores no argument
but those that only say how to compute: `split_mode`, `use_mmap`, `use_mlock`, `n_threads_batch`, `offload_kqv`,
`flash_attn`, `op_offload`, `swa_full`, `no_perf`, `numa`, `embedding`, `lora_scale` (without a LoRA),
`draft_model` (a prompt lookup, which localcoder does anyway), caches, and `verbose`.

`LlamaGrammar`, JSON mode and the call of a chosen tool need the extra `grammar`.
"""

from localcoder.compat.llama_cpp.constants import (
    GGML_TYPE_F16,
    GGML_TYPE_Q4_0,
    GGML_TYPE_Q8_0,
    LLAMA_DEFAULT_SEED,
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
    LLAMA_SPLIT_MODE_LAYER,
    LLAMA_SPLIT_MODE_NONE,
    LLAMA_SPLIT_MODE_ROW,
)
from localcoder.compat.llama_cpp.llama import Llama
from localcoder.compat.llama_cpp.llama_cache import LlamaCache, LlamaDiskCache, LlamaRAMCache
from localcoder.compat.llama_cpp.llama_grammar import LlamaGrammar
from localcoder.compat.llama_cpp.processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from localcoder.compat.llama_cpp.stepwise import LlamaState

__all__ = [
    "GGML_TYPE_F16",
    "GGML_TYPE_Q4_0",
    "GGML_TYPE_Q8_0",
    "LLAMA_DEFAULT_SEED",
    "LLAMA_POOLING_TYPE_CLS",
    "LLAMA_POOLING_TYPE_LAST",
    "LLAMA_POOLING_TYPE_MEAN",
    "LLAMA_POOLING_TYPE_NONE",
    "LLAMA_POOLING_TYPE_UNSPECIFIED",
    "LLAMA_SPLIT_MODE_LAYER",
    "LLAMA_SPLIT_MODE_NONE",
    "LLAMA_SPLIT_MODE_ROW",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]
