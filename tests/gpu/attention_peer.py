"""Times torch's scaled_dot_product_attention (flash and cuDNN) on the shapes of tests/gpu/attention.cu, for comparison.

    python3 tests/gpu/attention_peer.py

Prints milliseconds of 32 causal layers, replayed from a CUDA graph: the median of 7. Needs a GPU and PyTorch.
"""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS = 32
SHAPES = [(4, 2048, 32, 32, 128), (4, 2048, 32, 8, 128), (4, 400, 32, 32, 128), (4, 2048, 32, 32, 64), (8, 512, 9, 3, 64)]


def time_layers(step):
    """Milliseconds of LAYERS calls of step."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAYERS):
            step()
    times = []
    for run in range(9):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if run >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}, {LAYERS} layers")
    for samples, length, heads, kv_heads, dim in SHAPES:
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            def make(n):
                return torch.randn(samples, length, n, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()

            q, k, v, seed = make(heads), make(kv_heads), make(kv_heads), make(heads).detach()
            try:
                with sdpa_kernel(backend):
                    def forward():
                        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)

                    def both():
                        torch.autograd.grad(forward(), (q, k, v), seed)

                    with torch.no_grad():
                        first = time_layers(forward)
                    whole = time_layers(both)
                print(f"{backend.name:16s} {samples:2d} x {length:<4d}  H {heads:2d}  K {kv_heads:2d}  D {dim:3d} | forward {first:7.2f} ms"
                      f" | backward {whole - first:7.2f} ms | both {whole:7.2f} ms")
            except RuntimeError as error:
                print(f"{backend.name:16s} {samples} x {length} H {heads} K {kv_heads} D {dim}: {str(error).splitlines()[0]}")


main()
