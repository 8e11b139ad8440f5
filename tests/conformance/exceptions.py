"""Tests of ONNX that ONNX Runtime passes and Cloister does not, each with the reason."""

EXCEPTIONS: dict[str, str] = {}
