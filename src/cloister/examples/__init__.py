"""Models that come with Cloister: digits.onnx, made by examples/train_digits.py."""
