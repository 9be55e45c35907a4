"""Writes tests/fixtures/library.safetensors with the safetensors library: every element type that torch has, an empty tensor,
a scalar, names in need of escapes.

Run:  python tests/oracle/safetensors_files.py   (torch, safetensors; the product itself never needs Python)
"""

import pathlib

import torch
from safetensors.torch import save_file

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64,
]


def main() -> None:
    tensors = {}
    for i, dtype in enumerate(DTYPES):
        size = torch.empty(0, dtype=dtype).element_size()
        data = torch.tensor([(7 * i + k) % 2 for k in range(6 * size)], dtype=torch.uint8)
        tensors[f"t{i}"] = data.view(dtype).reshape(2, 3)
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.empty(0, 4)
    tensors["a.b"] = torch.tensor([1.0, -2.0, 65504.0, 6e-8, float("inf")], dtype=torch.float16)
    tensors["a b\"\\\n\u00e9"] = torch.tensor([1.0, -3.5, 2.0**100], dtype=torch.bfloat16)
    tensors["Z\U0001f600"] = torch.zeros(1)
    tensors["Z\uffee"] = torch.zeros(1)
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "library.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
