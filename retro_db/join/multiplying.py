"""Products of matrices, by the fastest library that this torch has for them."""

from __future__ import annotations

import torch

# oneDNN compiles every new shape of a product, so the shapes are few.
ROW_STEP, COLUMN_STEP = 512, 32


def multiply(
    rows: torch.Tensor, columns: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiplies every row with every column: rows [n, d] and columns [m, d] to [n, m].

    torch gives float32 products to MKL, which takes half of what some AMD processors can do; oneDNN is part
    of torch, and its operator is the one that torch.compile emits.

    Args:
        rows: [n, d].
        columns: [m, d], of the same type and on the same device.
        bias: [m] that is added to every row, or None.
    """
    of_cpu = rows.device.type == "cpu" and rows.dtype == torch.float32
    if of_cpu and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")
    return torch.nn.functional.linear(rows, columns, bias)


def sum_in_float32() -> None:
    """Has CUDA add up products in float32 to the end, and round no float32 before: the bounds need it."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_tf32 = False


def padded_rows(rows: int) -> int:
    """At least as many rows: a power of two, or a multiple of the step."""
    if rows > ROW_STEP:
        return -(-rows // ROW_STEP) * ROW_STEP
    return 1 << max(4, (rows - 1).bit_length())


def padded_columns(columns: int) -> int:
    """At least as many columns: a multiple of the step."""
    return -(-columns // COLUMN_STEP) * COLUMN_STEP
