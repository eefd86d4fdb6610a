"""The works from which published weights derive, as model cards describe and cite them."""

from typing import NamedTuple

from swag_models.catalog.swag import NC_URL
from swag_models.spec import ModelSpec


class Work(NamedTuple):
    """A way of pre-training.

    Attributes:
        text: the models and their data, in the plural.
        authors: first author.
        title: of the paper.
        venue: of the paper.
        arxiv: its number.
        bibtex: its entry.
    """

    text: str
    authors: str
    title: str
    venue: str
    arxiv: str
    bibtex: str


WORKS = {
    "swag": Work(
        text="the SWAG models, which were pre-trained on\n3.6 billion public Instagram images to "
        "predict the hashtags that people had added to them",
        authors="Singh",
        title="Revisiting Weakly Supervised Pre-Training of Visual Perception Models",
        venue="CVPR 2022",
        arxiv="2201.08371",
        bibtex=r"""@inproceedings{singh2022revisiting,
  title = {Revisiting Weakly Supervised Pre-Training of Visual Perception Models},
  author = {Singh, Mannat and Gustafson, Laura and Adcock, Aaron and de Freitas Reis, Vinicius and
            Gedik, Bugra and Kosaraju, Raj Prateek and Mahajan, Dhruv and Girshick, Ross and
            Doll{\'a}r, Piotr and van der Maaten, Laurens},
  booktitle = {CVPR},
  year = {2022}
}""",
    ),
    "wsl": Work(
        text="the WSL models, which were pre-trained on\n940 million public Instagram images to "
        "predict the hashtags that people had added to them",
        authors="Mahajan",
        title="Exploring the Limits of Weakly Supervised Pretraining",
        venue="ECCV 2018",
        arxiv="1805.00932",
        bibtex="""@inproceedings{mahajan2018exploring,
  title = {Exploring the Limits of Weakly Supervised Pretraining},
  author = {Mahajan, Dhruv and Girshick, Ross and Ramanathan, Vignesh and He, Kaiming and
            Paluri, Manohar and Li, Yixuan and Bharambe, Ashwin and van der Maaten, Laurens},
  booktitle = {ECCV},
  year = {2018}
}""",
    ),
    "swsl": Work(
        text="the SWSL models, which were pre-trained on\npublic Instagram images with the labels "
        "of a model that had learned hashtags",
        authors="Yalniz",
        title="Billion-scale semi-supervised learning for image classification",
        venue="2019",
        arxiv="1905.00546",
        bibtex=r"""@article{yalniz2019billion,
  title = {Billion-scale semi-supervised learning for image classification},
  author = {Yalniz, I. Zeki and J{\'e}gou, Herv{\'e} and Chen, Kan and Paluri, Manohar and
            Mahajan, Dhruv},
  journal = {arXiv 1905.00546},
  year = {2019}
}""",
    ),
    "maws": Work(
        text="the MAWS models, which were pre-trained on\n3 billion public Instagram images, first "
        "as masked autoencoders and then to predict the hashtags that people had added to them",
        authors="Singh",
        title="The effectiveness of MAE pre-pretraining for billion-scale pretraining",
        venue="ICCV 2023",
        arxiv="2303.13496",
        bibtex=r"""@inproceedings{singh2023effectiveness,
  title = {The effectiveness of MAE pre-pretraining for billion-scale pretraining},
  author = {Singh, Mannat and Duval, Quentin and Alwala, Kalyan Vasudev and Fan, Haoqi and
            Aggarwal, Vaibhav and Adcock, Aaron and Joulin, Armand and Doll{\'a}r, Piotr and
            Feichtenhofer, Christoph and Girshick, Ross and Girdhar, Rohit and Misra, Ishan},
  booktitle = {ICCV},
  year = {2023}
}""",
    ),
}


def find_work(origin: ModelSpec) -> Work | None:
    """Return the work from which a model derives; None if it is none of WORKS.

    Args:
        origin: the model, or the one that it was made from.
    """
    if origin.pretraining is None and origin.license_url == NC_URL:
        return WORKS["swag"]  # saved by a version that did not state the pre-training
    return WORKS.get(origin.pretraining or "")
