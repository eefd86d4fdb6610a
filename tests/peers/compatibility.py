"""Which calls of other libraries work on our models: the rows of docs/compatibility.md.

Each row has one check, which runs on our models and on comparable models of the peer as control.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peers import library_calls, timm_calls, torch_calls, training_calls
from peers.subjects import (
    TIMM,
    TIMM_REGNET,
    TIMM_VIT,
    TORCHVISION,
    TORCHVISION_REGNET,
    TORCHVISION_VIT,
    Family,
    Subject,
)


@dataclass(frozen=True)
class Refused:
    """Our model refuses the call in one line.

    Attributes:
        reason: for the document.
        pattern: of the message.
    """

    reason: str
    pattern: str


@dataclass(frozen=True)
class Missing:
    """The family has no such thing: the peer's model of this family raises the same error.

    Attributes:
        reason: for the document.
        error: what both raise.
    """

    reason: str
    error: type[Exception] = AttributeError


@dataclass(frozen=True)
class Row:
    """An API and what becomes of it.

    Attributes:
        api: as users write it.
        check: runs it on a model and asserts what its users rely on.
        peers: models of theirs on which the check must hold too.
        other: families on which it does not work.
        long: takes seconds, and runs by `make peers` only.
    """

    api: str
    check: Callable[[Subject], None]
    peers: tuple[Subject, ...] = TIMM
    other: Mapping[Family, Refused | Missing] = field(default_factory=dict)
    long: bool = False

    @property
    def slug(self) -> str:
        """The API as a part of the name of a test."""
        return "_".join(re.findall(r"\w+", self.api))[:60]

    def describe(self, family: Family) -> str:
        """Return the cell of a family."""
        outcome = self.other.get(family)
        if outcome is None:
            return "works"
        return f"{'refused' if isinstance(outcome, Refused) else 'none'}: {outcome.reason}"


# timm's ViTs are traced with timm's own tracer only.
TRACEABLE = (TORCHVISION_VIT, TIMM_REGNET)
FAMILIES: tuple[Family, ...] = ("vit", "regnet")
NO_TOKENS: dict[Family, Refused | Missing] = {"regnet": Missing("a RegNet has no tokens")}
NO_ATTENTION: dict[Family, Refused | Missing] = {
    "regnet": Missing("a RegNet has no attention", RuntimeError)
}

SECTIONS: dict[str, tuple[Row, ...]] = {
    "timm: data and descriptions": (
        Row(
            "`timm.data.resolve_model_data_config(model)`, `create_transform`",
            timm_calls.data_config,
        ),
        Row("`model.pretrained_cfg`, `model.default_cfg`", timm_calls.pretrained_cfg),
        Row("`num_features`, `head_hidden_size`, `get_classifier()`", timm_calls.head_attributes),
        Row(
            "`embed_dim`, `num_prefix_tokens`; `patch_embed.num_patches`, `grid_size`, "
            "`patch_size`, `img_size`",
            timm_calls.token_attributes,
            other=NO_TOKENS,
        ),
        Row("`model.global_pool`", timm_calls.global_pool, peers=(TIMM_VIT,)),
        Row("`model.pool(tokens)`", timm_calls.pool, other=NO_TOKENS),
    ),
    "timm: heads and sizes": (
        Row("`reset_classifier(0)`: pooled features", timm_calls.pooled_without_head),
        Row('`reset_classifier(0, "")`: features', timm_calls.unpooled_without_head),
        Row("`load_model(name, num_classes=0)`", timm_calls.load_without_head),
        Row('`load_model(name, num_classes=0, global_pool="")`', timm_calls.load_without_pooling),
        Row("`timm.create_model(name, num_classes=0)`", timm_calls.create_without_head),
        Row(
            '`timm.create_model(name, num_classes=0, global_pool="")`',
            timm_calls.create_without_pooling,
        ),
        Row("`timm.create_model(name, features_only=True)`", timm_calls.create_features_only),
        Row("`timm.create_model(name, checkpoint_path=...)`", timm_calls.create_with_checkpoint),
        Row(
            "`timm.create_model(name, img_size=...)`",
            timm_calls.create_with_img_size,
            other=NO_TOKENS,
        ),
        Row("`set_input_size(img_size=...)`", timm_calls.set_input_size, other=NO_TOKENS),
        Row("`init_weights()` after `to_empty`", timm_calls.init_weights, peers=(TIMM_VIT,)),
    ),
    "timm: features": (
        Row("`forward_intermediates(x, indices=n)`", timm_calls.last_intermediates),
        Row(
            '`forward_intermediates(output_fmt="NLC")`',
            timm_calls.intermediate_tokens,
            peers=(TIMM_VIT,),
            other={"regnet": Refused("a RegNet has maps", "output_fmt")},
        ),
        Row(
            "`forward_intermediates(output_dict=True)`",
            timm_calls.intermediate_dictionary,
            peers=(TIMM_VIT,),
        ),
        Row("`get_intermediate_layers(x, n)`", timm_calls.get_intermediate_layers, other=NO_TOKENS),
        Row("`prune_intermediate_layers(indices)`", timm_calls.prune_intermediate_layers),
        Row("`FeatureInfo(model.feature_info, ...)`", timm_calls.feature_info),
        Row(
            "`FeatureListNet(model)`",
            timm_calls.feature_list_net,
            other={"vit": Missing("a ViT's blocks are nested; use another net", AssertionError)},
        ),
        Row(
            "`FeatureDictNet(model)`",
            timm_calls.feature_dict_net,
            other={"vit": Missing("a ViT's blocks are nested; use another net", AssertionError)},
        ),
        Row("`FeatureHookNet(model)`", timm_calls.feature_hook_net),
        Row("`FeatureGetterNet(model)`", timm_calls.feature_getter_net),
        Row("`FeatureGraphNet(model)`", timm_calls.feature_graph_net),
        Row("`GraphExtractNet(model, nodes)`", timm_calls.graph_extract_net),
    ),
    "timm: attention": (
        Row("`forward_features(x, attn_mask=...)`", timm_calls.attention_mask, other=NO_TOKENS),
        Row(
            '`AttentionExtract(model, method="fx")`',
            timm_calls.attention_extract_fx,
            other=NO_ATTENTION,
        ),
        Row(
            '`AttentionExtract(model, method="hook")`',
            timm_calls.attention_extract_hook,
            other=NO_ATTENTION,
        ),
        Row(
            "`block.attn.fused_attn = False` and hooks on `attn_drop` (rollout)",
            timm_calls.attention_rollout,
            other=NO_TOKENS,
        ),
    ),
    "timm: training": (
        Row("`create_optimizer_v2(model, layer_decay=...)`", training_calls.layer_decay),
        Row("`group_parameters`, `group_modules`", training_calls.group_parameters),
        Row("`ModelEmaV3(model)`", training_calls.model_ema),
        Row("`freeze(model, ...)`, `unfreeze`", training_calls.freeze),
        Row(
            "`freeze_batch_norm_2d(model)`",
            training_calls.freeze_batch_norm,
            other={"vit": Missing("a ViT has no batch norm", AssertionError)},
        ),
        Row("`convert_splitbn_model(model, n)`", training_calls.split_batch_norm),
        Row("`convert_sync_batchnorm(model)`", training_calls.sync_batch_norm),
        Row("`reparameterize_model(model)`", training_calls.reparameterize),
        Row("`timm.models.load_checkpoint(model, path)`", training_calls.timm_load_checkpoint),
    ),
    "torch": (
        Row("`torch.fx.symbolic_trace(model)`", torch_calls.symbolic_trace, peers=TRACEABLE),
        Row("`torch.fx.experimental.optimization.fuse(model)`", torch_calls.fused, peers=TRACEABLE),
        Row("`torch.jit.script(model)`, saved and loaded", torch_calls.jit_script, long=True),
        Row("`torch.jit.trace(model, x)`", torch_calls.jit_trace, long=True),
        Row("`torch.export.export(model, (x,))`", torch_calls.exported, long=True),
        Row("`torch.compile(model, fullgraph=True)`", torch_calls.compiled, long=True),
        Row(
            "`torch.func.functional_call(model, parameters, x)`", torch_calls.functional, long=True
        ),
        Row(
            "`torch.func.vmap(grad(...))`: gradients of each sample",
            torch_calls.per_sample_gradients,
        ),
        Row("forward hooks that keep outputs", torch_calls.hooks_are_not_overwritten, peers=()),
        Row(
            "`register_full_backward_hook` on every module",
            torch_calls.full_backward_hooks,
            peers=(TIMM_VIT,),
        ),
        Row("`copy.deepcopy(model)`", torch_calls.deep_copy),
        Row("`pickle`", torch_calls.pickled),
        Row("`model.double()`", torch_calls.double_precision),
        Row("`torch.autocast`", torch_calls.autocast),
        Row("`model.to(memory_format=torch.channels_last)`", torch_calls.channels_last),
        Row("gradients of the input", torch_calls.input_gradients),
    ),
    "torchvision": (
        Row(
            "`create_feature_extractor(model, nodes)`",
            torch_calls.feature_extractor,
            peers=TRACEABLE,
        ),
        Row("`get_graph_node_names(model)`", torch_calls.graph_node_names, peers=TRACEABLE),
        Row(
            "`IntermediateLayerGetter(model, layers)`",
            torch_calls.layer_getter,
            peers=(TIMM_REGNET, TORCHVISION_REGNET),
        ),
        Row(
            "`BackboneWithFPN(model, layers, ...)`",
            torch_calls.backbone_with_fpn,
            peers=(TIMM_REGNET, TORCHVISION_REGNET),
            other={"vit": Missing("a ViT has one resolution; use FeaturePyramid", ValueError)},
        ),
    ),
    "torchvision: models by name (`swag_models.get_model` and so on)": (
        Row("`get_model(name, weights=None)`", torch_calls.get_model, peers=TORCHVISION),
        Row("`get_model_builder(name)`", torch_calls.get_model_builder, peers=TORCHVISION),
        Row("`get_model_weights(name)`, `get_weight`", torch_calls.get_weights, peers=TORCHVISION),
        Row("`list_models(include=, exclude=)`", torch_calls.list_models, peers=TORCHVISION),
        Row(
            '`weights="DEFAULT"`, a `WeightsEnum`', torch_calls.default_weights, peers=(), long=True
        ),
        Row(
            "`weights=` of a model that is not ours",
            torch_calls.weights_of_another_model,
            peers=(),
            other=dict.fromkeys(FAMILIES, Refused("names ours", "ResNet18_Weights")),
        ),
        Row(
            "`weights=` a URL",
            torch_calls.weights_at_a_url,
            peers=(),
            other=dict.fromkeys(FAMILIES, Refused("download and verify it first", "local file")),
        ),
    ),
    "transformers and peft": (
        Row(
            "`AutoModelForImageClassification.from_pretrained(folder)`",
            library_calls.transformers_logits,
        ),
        Row(
            '`pipeline("image-classification", folder)`',
            library_calls.transformers_pipeline,
            long=True,
        ),
        Row('`timm.create_model("local-dir:folder")`', library_calls.timm_local_folder, long=True),
        Row("`peft.LoraConfig`: train, save, merge", library_calls.lora, long=True),
        Row("`peft.LoHaConfig`: train, save, merge", library_calls.loha, long=True),
        Row("`peft.IA3Config`: train, save, merge", library_calls.ia3, long=True),
    ),
    "grad-cam and captum": (
        Row("`GradCAM(model, [layer])`", library_calls.grad_cam, long=True),
        Row("`LayerCAM(model, [layer])`", library_calls.layer_cam, long=True),
        Row("`EigenCAM(model, [layer])`", library_calls.eigen_cam, long=True),
        Row(
            "`captum.attr.IntegratedGradients(model)`",
            library_calls.integrated_gradients,
            long=True,
        ),
    ),
}
