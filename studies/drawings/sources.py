"""Where the drawings come from: packages with their versions and hashes, artists and licences.

Values only. The packages of npm are fixed by version and SHA-256; of Debian's clip art, which has
not changed since 2007, any version is used.
"""

from __future__ import annotations

from typing import NamedTuple


class NpmPackage(NamedTuple):
    """A package of npm.

    Attributes:
        name: as `npm pack` takes it.
        version: the version that is used.
        sha256: of its file.
    """

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The file that `npm pack` writes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


class EmojiSource(NamedTuple):
    """The emoji of one artist.

    Attributes:
        name: short name, part of the ids of images.
        family: sources of one family show the same designs, and are split alike.
        artist: who drew them.
        license: SPDX identifier.
        credit: where they were published.
        package: the package that contains them.
    """

    name: str
    family: str
    artist: str
    license: str
    credit: str
    package: NpmPackage


KEYWORDS = NpmPackage(
    "emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303"
)
EMOJI = (
    EmojiSource(
        "noto",
        "noto",
        "Google",
        "Apache-2.0",
        "github.com/googlefonts/noto-emoji",
        NpmPackage(
            "@iconify-json/noto",
            "1.2.9",
            "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        ),
    ),
    EmojiSource(
        "noto-v1",
        "noto",
        "Google",
        "Apache-2.0",
        "github.com/googlefonts/noto-emoji",
        NpmPackage(
            "@iconify-json/noto-v1",
            "1.2.5",
            "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        ),
    ),
    EmojiSource(
        "fluent-emoji",
        "fluent",
        "Microsoft",
        "MIT",
        "github.com/microsoft/fluentui-emoji",
        NpmPackage(
            "@iconify-json/fluent-emoji",
            "1.2.7",
            "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        ),
    ),
    EmojiSource(
        "fluent-emoji-flat",
        "fluent",
        "Microsoft",
        "MIT",
        "github.com/microsoft/fluentui-emoji",
        NpmPackage(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        ),
    ),
    EmojiSource(
        "emojione",
        "emojione",
        "Emoji One",
        "CC-BY-4.0",
        "github.com/EmojiTwo/emojitwo",
        NpmPackage(
            "@iconify-json/emojione",
            "1.2.3",
            "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        ),
    ),
    EmojiSource(
        "fxemoji",
        "fxemoji",
        "Mozilla",
        "Apache-2.0",
        "github.com/mozilla/fxemoji",
        NpmPackage(
            "@iconify-json/fxemoji",
            "1.2.2",
            "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        ),
    ),
    EmojiSource(
        "twemoji",
        "twemoji",
        "Twitter",
        "CC-BY-4.0",
        "github.com/jdecked/twemoji",
        NpmPackage(
            "@iconify-json/twemoji",
            "1.2.5",
            "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        ),
    ),
)
HELD_OUT_ARTIST = "twemoji"

CLIP_ART = "openclipart"  # part of the ids of images
CLIP_ART_PACKAGE = "openclipart-svg"  # of Debian
CLIP_ART_FOLDER = "usr/share/openclipart/svg"  # below the root of an installed package
CLIP_ART_LICENSE = "public domain"
# The licences that files of the clip art state. Two files state the GPL, and are left out; those
# that state nothing are covered by the dedication of the whole collection.
PUBLIC_DOMAIN = (
    "",
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain/",
)
