"""torch.hub entry points: every model of the catalog, and nothing else."""

dependencies = ["torch", "torchvision", "huggingface_hub", "safetensors", "PIL", "requests"]

from swag_models import hub_entries as _hub_entries

globals().update(_hub_entries())
