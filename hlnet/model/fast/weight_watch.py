"""Whether a network's weights are still those that something was derived from.

Notable here: nothing is copied or compared by value. torch counts the changes of every tensor; those numbers, and where
the tensors lie, are looked at in tens of microseconds.
"""

from __future__ import annotations

from torch import nn

from hlnet.errors import UsageError


class WeightWatch:
    """Remembers the parameters and buffers of a module as they are now.

    Seen are changes in place (an optimizer's step, ``load_state_dict``, batch norms in training), moves to another
    device or type, and tensors put in the place of others. Not seen, as torch does not count them, are changes through
    ``.data``, and those of tensors that were made in inference mode.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> watch = WeightWatch(linear)
        >>> watch.check()
        >>> _ = nn.init.zeros_(linear.bias)
        >>> watch.check()
        Traceback (most recent call last):
        hlnet.errors.UsageError: the network's weights have changed since optimize(); call it again
    """

    def __init__(self, module: nn.Module) -> None:
        self._held = [
            (tensors, name, tensor)
            for part in module.modules()
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._counted = [tensor for _, _, tensor in self._held if not tensor.is_inference()]
        self._before = self._state()

    def check(self) -> None:
        """Refuse to go on with what was derived.

        Raises:
            UsageError: if the weights have changed.
        """
        same = all(tensors.get(name) is tensor for tensors, name, tensor in self._held)
        if not same or self._state() != self._before:
            raise UsageError("the network's weights have changed since optimize(); call it again")

    def _state(self) -> tuple[int, list[int]]:
        changes = sum([tensor._version for tensor in self._counted])
        return changes, [tensor.data_ptr() for _, _, tensor in self._held]
