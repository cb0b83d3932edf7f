"""Block formats: the definition that everything else reads."""

from localcoder.quants.registry import ALL, BY_ID, by_name
from localcoder.quants.spec import QuantTensor, QuantType

__all__ = ["ALL", "BY_ID", "QuantTensor", "QuantType", "by_name"]
