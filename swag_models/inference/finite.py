"""Outputs that are not numbers, and why."""

from torch import Tensor, nn

from swag_models.errors import CheckpointError, ConfigError
from swag_models.formatting import escape_unprintable, list_names


def check_finite(outputs: Tensor, network: nn.Module, name: str) -> None:
    """Check that a network returns finite numbers.

    Args:
        outputs: of the network, of any shape.
        network: its weights are checked if the outputs are not finite.
        name: of the network, for the message.

    Raises:
        CheckpointError: some outputs are not finite, and some weights are not either.
        ConfigError: some outputs are not finite, although all weights are.
    """
    if outputs.isfinite().all():
        return
    name, state = escape_unprintable(name), network.state_dict()
    if wrong := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{name} returns NaN or infinity, because its weights have these values: "
            f"{list_names(wrong, 3)}; load another checkpoint, from before the training diverged"
        )
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), "")
    raise ConfigError(
        f"{name} returns NaN or infinity in {dtype}, although its weights are finite; use dtype "
        "float32"
    )
