"""Uses that type checkers reject: each line with a comment. Read by tests/test_typing.py."""

import swag_models
import swag_models.inference
from swag_models import load_modle  # has no attribute "load_modle"
from swag_models import vit_b17  # has no attribute "vit_b17"
from swag_models.inference import Clasifier  # has no attribute "Clasifier"
from swag_models.models import VIT  # has no attribute "VIT"
from swag_models.publish import puhs  # has no attribute "puhs"

swag_models.vit_b17()  # has no attribute "vit_b17"
swag_models.load_modle("vit_b16")  # has no attribute "load_modle"
swag_models.TYPE_CHECKING  # has no attribute "TYPE_CHECKING"
swag_models.logging  # has no attribute "logging"
swag_models.vit_b16(num_clases=3)  # "num_clases" .* did you mean "num_classes"
swag_models.vit_b16(num_classes="3")  # No overload variant
swag_models.regnety_16gf(pretraind=True)  # "pretraind" .* did you mean "pretrained"
swag_models.load_model("vit_b16", devcie="cuda")  # "devcie" .* did you mean "device"
swag_models.load_model("vit_b16", global_pool="max")  # No overload variant
swag_models.load_model(16)  # No overload variant
swag_models.get_model("vit_b16", weigths=None)  # "weigths" .* did you mean "weights"
swag_models.load_preprocess("vit_b16", trian=True)  # "trian" .* did you mean "train"
swag_models.load_preprocess("vit_b16").normalize  # no attribute "normalize"
swag_models.inference.Classifier("vit_b16_in1k", devcie="cpu")  # "devcie" .* did you mean "device"
swag_models.inference.Embedder("vit_b16", bacth_size=2)  # "bacth_size"
swag_models.regnety_16gf().forward_intermediates(None, attn_mask=None)  # "attn_mask"
swag_models.vit_b16()([])  # incompatible type "list
swag_models.get_spec("vit_b16").parameters  # no attribute "parameters"
