"""PyTorch; a test module that imports it from here first is skipped where it is not installed."""

import pytest

torch = pytest.importorskip("torch")
