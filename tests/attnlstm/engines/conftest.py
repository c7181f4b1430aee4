"""What the tests of engines share: Triton's interpreter, which runs CUDA kernels on any CPU."""

import os

# Triton decides when it is first imported, so this happens here, at import.
os.environ["TRITON_INTERPRET"] = "1"
