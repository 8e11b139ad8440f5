"""Models and demonstrations that come with Cloister; examples/train_digits.py made digits.onnx."""
