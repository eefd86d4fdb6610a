"""Entry points of torch.hub: one function per model in the catalog."""

dependencies = ["torch", "torchvision", "huggingface_hub", "safetensors", "PIL", "requests"]

# With an underscore, because torch.hub lists every public callable of this file.
from swag_models import hub_entries as _hub_entries

globals().update(_hub_entries())
