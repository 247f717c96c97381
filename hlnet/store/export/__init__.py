"""Networks for other runtimes: ONNX, OpenVINO, torch.export, ExecuTorch.

portable           the network on plain operators
about              what a file says of itself, and what ties a head to its trunk
writers            ... written in each format
runtimes           ... and run there
export_model       the export: write, run, compare, put in place
quantize           int8
"""
