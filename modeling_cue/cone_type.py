"""The cone: a value type for sets of directions. What one can do with cones is in cones.py."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cone:
    """A batch of spherical cones: all unit vectors within `radius` of `axis`.

    Args:
        axis: (..., D) unit vectors, D >= 2.
        radius: (...) angular radius in radians, in [0, pi]; 0 is one direction, pi the whole sphere.
        empty: (...) bool, true where the set is empty and axis and radius only say where it would be; None if nowhere.

    The constructor looks at shapes and dtypes only, which costs no synchronisation with the device; `check_cone`
    looks at the values.

    Raises:
        TypeError: a field that is no tensor. ValueError: shapes or dtypes that do not fit together.
    """

    axis: Tensor
    radius: Tensor
    empty: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("axis", self.axis), ("radius", self.radius), ("empty", self.empty)):
            if not (isinstance(value, Tensor) or (name == "empty" and value is None)):
                raise TypeError(f"Cone.{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor")
        if self.axis.ndim < 1 or self.axis.shape[-1] < 2:
            raise ValueError(
                f"Cone.axis must have the shape (..., D) with D >= 2, got {tuple(self.axis.shape)}; "
                "the last dimension holds one vector"
            )
        for name, value in (("axis", self.axis), ("radius", self.radius)):
            if not value.is_floating_point():
                raise ValueError(f"Cone.{name} must be floating point, got {value.dtype}; convert it with .float()")
        batch = self.axis.shape[:-1]
        for name, value in (("radius", self.radius), ("empty", self.empty)):
            if value is not None and value.shape != batch:
                raise ValueError(
                    f"Cone.{name} must have the shape of axis without its last dimension, {tuple(batch)}; "
                    f"got {tuple(value.shape)}: give one value per axis"
                )
        if self.empty is not None and self.empty.dtype != torch.bool:
            raise ValueError(f"Cone.empty must be bool, got {self.empty.dtype}; convert it with .bool()")

    @property
    def shape(self) -> torch.Size:
        """The batch shape: that of `radius`."""
        return self.radius.shape

    @property
    def dim(self) -> int:
        """D, the dimension of the space."""
        return self.axis.shape[-1]

    @property
    def device(self) -> torch.device:
        """The device of axis and radius."""
        return self.radius.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the radius."""
        return self.radius.dtype

    def __len__(self) -> int:
        """The size of the first batch dimension."""
        return len(self.radius)

    def __getitem__(self, index: Any) -> "Cone":
        """Indexes the batch dimensions as one indexes a tensor; the vectors stay whole."""
        radius = self.radius[index]
        parts = index if isinstance(index, tuple) else (index,)
        # An ellipsis reaches to the last dimension, which in the axis is the vector.
        parts = (*parts, slice(None)) if any(part is Ellipsis for part in parts) else parts
        return Cone(self.axis[parts], radius, None if self.empty is None else self.empty[index])

    def take(self, index: Tensor) -> "Cone":
        """Selects rows of cones (N,) by index, which may repeat: (...,) int64 in [0, N) -> cones (...,).

        As indexing, but with gradients that are the same to the bit in every run: several threads of a CPU sum those
        of rows that come up more than once in no fixed order where a tensor is indexed.
        """

        def chosen(rows: Tensor) -> Tensor:
            return rows.index_select(0, index.flatten()).view(index.shape + rows.shape[1:])

        return Cone(chosen(self.axis), chosen(self.radius), None if self.empty is None else self.empty[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Cone":
        radius = change(self.radius)
        empty = None if self.empty is None else self.empty.to(radius.device)
        return Cone(widened_axis(self.axis, change(self.axis)), radius, empty)

    def to(self, *args: Any, **kwargs: Any) -> "Cone":
        """As `Tensor.to`: a device, a floating-point dtype or both."""
        return self._map(lambda x: x.to(*args, **kwargs))

    def detach(self) -> "Cone":
        """The same cones outside the graph of gradients."""
        return self._map(Tensor.detach)

    def float(self) -> "Cone":
        """The same cones in float32."""
        return self._map(Tensor.float)

    def cpu(self) -> "Cone":
        """The same cones on the CPU."""
        return self._map(Tensor.cpu)

    @staticmethod
    def cat(cones: Iterable["Cone"], dim: int = 0) -> "Cone":
        """Joins batches end to end along batch dimension `dim`."""
        return _gather(torch.cat, cones, dim)

    @staticmethod
    def stack(cones: Iterable["Cone"], dim: int = 0) -> "Cone":
        """Lays batches of one shape side by side along a new batch dimension `dim`."""
        return _gather(torch.stack, cones, dim)


# So that `torch.load` takes cones as it takes tensors, by its default of weights only.
torch.serialization.add_safe_globals([Cone])


def _gather(function: Callable[..., Tensor], cones: Iterable[Cone], dim: int) -> Cone:
    cones = list(cones)
    if not cones:
        raise ValueError("Cone.cat and Cone.stack need at least one cone, got an empty sequence")
    if wrong := [one for one in cones if not isinstance(one, Cone)]:
        raise TypeError(f"a {type(wrong[0]).__name__} is no cone: give those of `model(...).cones`")
    dims = sorted({cone.dim for cone in cones})
    if len(dims) > 1:
        raise ValueError(f"the cones live in spaces of different dimensions {dims}; they must all come from one model")
    if function is torch.stack and len(shapes := {tuple(cone.radius.shape) for cone in cones}) > 1:
        raise ValueError(f"the cones to be stacked have different shapes {sorted(shapes)}: give as many of each")
    # Counted from the end, a batch dimension of the axis lies one further from it.
    axis = function([cone.axis for cone in cones], dim if dim >= 0 else dim - 1)
    radius = function([cone.radius for cone in cones], dim)
    if all(cone.empty is None for cone in cones):
        return Cone(axis, radius)
    return Cone(axis, radius, function([empty_mask(cone) for cone in cones], dim))


def widened_axis(before: Tensor, after: Tensor) -> Tensor:
    """`after`, of unit length again where `before` was rounded to half precision and it is not: (..., D)."""
    half = (torch.float16, torch.bfloat16)
    return torch.nn.functional.normalize(after, dim=-1) if before.dtype in half and after.dtype not in half else after


def empty_mask(cone: Cone) -> Tensor:
    """`cone.empty`, all false where it is None: (...) bool."""
    return torch.zeros_like(cone.radius, dtype=torch.bool) if cone.empty is None else cone.empty


def is_whole(cone: Cone) -> Tensor:
    """Where the radius is pi, as near as its dtype can say it, so that the set is the whole sphere: (...) bool."""
    return cone.radius >= torch.full_like(cone.radius, math.pi)


def check_cone(cone: Cone) -> None:
    """Checks the values: finite unit axes (to 8 eps of their dtype) and radii in [0, pi]. Synchronises the device.

    Raises:
        ValueError: naming the field, how many values are wrong, the first of them and what to do.
    """
    tolerance = 8 * torch.finfo(cone.axis.dtype).eps
    norm = torch.linalg.vector_norm(cone.axis.to(torch.promote_types(cone.axis.dtype, torch.float32)), dim=-1)
    # Written so that nan is refused too.
    _refuse(~((norm - 1).abs() <= tolerance), norm, "axis", "norm", "1", "normalise it over its last dimension")
    radius = cone.radius
    inside = (radius >= 0) & (radius <= torch.full_like(radius, math.pi))
    _refuse(~inside, radius, "radius", "value", "in [0, pi] radians", "convert degrees, or clamp it")


def _refuse(wrong: Tensor, value: Tensor, field: str, what: str, valid: str, remedy: str) -> None:
    if bool(wrong.any()):
        raise ValueError(
            f"Cone.{field}: {int(wrong.sum())} of {wrong.numel()} have a {what} that is not {valid}, "
            f"the first {value[wrong][0].item():g}; {remedy}"
        )
