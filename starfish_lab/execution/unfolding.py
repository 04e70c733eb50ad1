"""A convolution as a matrix product: every place's patch of the image becomes a row (im2col), so that a Linear layer can do it."""

from __future__ import annotations

from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from starfish_lab.models.gather import GatheredConv2d, can_gather


class UnfoldedConv2d(nn.Module):
    """A Conv2d as unfold → Linear → image again: (B, C_in, H, W) → (B, C_out, H', W'), channels last in memory.

    linear : C_in · kh · kw → C_out; columns of its weight in unfold's order: channel, then row, then column of the kernel
    """

    order: LongTensor | None  # of the input channels, where the convolution gathers them

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        columns = conv.weight[0].numel()
        self.linear = nn.Linear(columns, conv.out_channels, bias=conv.bias is not None, device="meta")  # draws no random numbers
        self.linear.weight = nn.Parameter(conv.weight.detach().flatten(1).contiguous(), requires_grad=False)
        if conv.bias is not None:
            self.linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.kernel_size, self.stride, self.dilation, self.padding = conv.kernel_size, conv.stride, conv.dilation, _padding(conv)
        self.register_buffer("order", conv.order if isinstance(conv, GatheredConv2d) else None)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = x.index_select(1, self.order)
        height, width = (_places(*one) for one in zip(x.shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation))
        patches = self._patches(x)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])  # (B · H' · W', C_in · kh · kw), contiguous: sparse kernels ask for it
        return self.linear(rows).view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C_in · kh · kw, H' · W')"""
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        return F.unfold(x, self.kernel_size, dilation=self.dilation, padding=self.padding, stride=self.stride)


def can_unfold(layer: nn.Module) -> bool:
    """True for plain, ungrouped convolutions that pad with zeros, equally on both sides."""
    if not isinstance(layer, nn.Conv2d) or not can_gather(layer) or layer.padding_mode != "zeros":
        return False
    return layer.padding != "same" or all(d * (k - 1) % 2 == 0 for k, d in zip(layer.kernel_size, layer.dilation))


def unfold(module: nn.Module, name: str) -> UnfoldedConv2d:
    """Put an unfolded layer in the place of the convolution `name`, in place. Returns it."""
    layer = UnfoldedConv2d(module.get_submodule(name))
    module.set_submodule(name, layer)
    return layer


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of zeros on each side."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation))
    return conv.padding


def _places(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Where a kernel fits along one side."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
