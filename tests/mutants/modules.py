"""The modules to mutate, and the tests that must notice."""

# Imported once, before the forks. Nothing of this package, whose modules are what is changed.
IMPORTS = (
    "pytest",
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torchvision.transforms.v2",
    "safetensors.torch",
    "huggingface_hub",
    "requests",
    "timm",
    "scipy.stats",
    "sklearn.metrics",
    "torchmetrics",
)

# Without tests that take seconds to repeat faster ones: compiled, at full size, for large models.
SLOW = ("compiled", "full_size", "on_meta", "h14", "l16", "128gf", "32gf")
SELECTION = " and ".join(f"not {name}" for name in SLOW)
BACKBONE = [
    "models/test_intermediates.py",
    "models/test_param_groups.py",
    "models/test_backbone.py",
    "models/test_timm_interface.py",
    "models/test_tracing.py",
    "models/test_hooks.py",
]

# Module below swag_models/ -> test files below tests/, the fastest and the most specific first.
MODULES = {
    "checkpoint.py": [
        "test_checkpoint_broken.py",
        "test_checkpoint_trainers.py",
        "test_checkpoint_foreign.py",
        "test_checkpoint.py",
        "test_weight_folder.py",
    ],
    "wrappers.py": [
        "test_wrappers.py",
        "test_checkpoint_trainers.py",
        "test_checkpoint_foreign.py",
        "test_weights_argument.py",
        "test_state_dict.py",
        "test_checkpoint_broken.py",
        "test_checkpoint.py",
    ],
    "weight_folder.py": ["test_weight_folder.py"],
    "dcp_folder.py": ["test_weight_folder.py"],
    "state_dict.py": [
        "test_state_dict.py",
        "models/test_backbone.py",
        "test_checkpoint_foreign.py",
    ],
    "positions.py": ["test_positions.py", "test_state_dict.py"],
    "registry.py": ["test_api.py", "hub/test_pull.py"],
    "preprocess.py": ["test_ranges.py", "test_preprocess.py"],
    "hub/download.py": [
        "hub/test_download_retries.py",
        "hub/test_download.py",
        "hub/test_download_hostile.py",
    ],
    "hub/part_file.py": ["hub/test_download.py", "hub/test_download_retries.py"],
    "hub/fetch.py": [
        "hub/test_fetch.py",
        "hub/test_fetch_disk.py",
        "hub/test_fetch_hub.py",
        "hub/test_pull.py",
        "hub/test_fetch_processes.py",
    ],
    "layouts.py": ["test_layouts.py"],
    "models/layers.py": ["models/test_linear.py", "models/test_checkpointing.py"],
    "models/vit.py": [
        "models/test_vit.py",
        *BACKBONE,
    ],
    "models/vit_block.py": ["models/test_vit.py", *BACKBONE],
    "models/vit_interface.py": [
        "models/test_vit.py",
        *BACKBONE,
    ],
    "models/arguments.py": [
        "models/test_vit.py",
        "models/test_regnet.py",
        *BACKBONE,
    ],
    "models/drop_path.py": ["models/test_backbone.py"],
    "models/fpn.py": ["models/test_fpn.py"],
    "models/unwrap.py": ["models/test_unwrap.py", "models/test_wrapped.py"],
    "models/regnet.py": [
        "models/test_regnet.py",
        *BACKBONE,
    ],
    "models/regnet_block.py": [
        "models/test_regnet.py",
        *BACKBONE,
    ],
    "models/backbone.py": [
        "models/test_freezing.py",
        *BACKBONE,
        "test_arguments.py",
        "models/test_checkpointing.py",
        "test_layouts.py",
    ],
    "models/param_groups.py": ["models/test_param_groups.py"],
    "recipe/training/losses.py": ["recipe/training/test_losses.py"],
    "recipe/training/optimizer.py": ["recipe/training/test_optimizer.py"],
    "recipe/curation/sampling.py": ["recipe/curation/test_sampling.py"],
    "recipe/hashtags.py": ["recipe/test_hashtags.py"],
    "recipe/evaluation/accuracy/metrics.py": ["recipe/evaluation/accuracy/test_metrics.py"],
}
