"""Triton kernels for CUDA, each file with the PyTorch function that it must equal. Imported only on CUDA."""
