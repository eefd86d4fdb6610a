"""Mutants that no test can kill: (module, line, changed line, why they are equivalent)."""

REMOVED = "a file that another process has removed cannot be renamed either, and is passed over"
ABSTRACT = "the method only states a signature, and both model families implement it"

EQUIVALENT: tuple[tuple[str, str, str, str], ...] = (
    (
        "checkpoint.py",
        "head = file.read(64)",
        "head = file.read( 63)",
        "the longest start of a format has 23 bytes",
    ),
    (
        "layouts.py",
        "@cache",
        "",
        "a cache changes speed only",
    ),
    (
        "hub/fetch.py",
        "lock.acquire(timeout=0)",
        "lock.acquire(timeout= 1)",
        "the message about waiting appears a second later",
    ),
    (
        "hub/fetch.py",
        'return hashlib.sha256(f"{source.url} {source.sha256}".encode()).hexdigest()[:16]',
        'return hashlib.sha256(f"{source.url} {source.sha256}".encode()).hexdigest()[: 15]',
        "60 bits tell sources apart as 64 do",
    ),
    (
        "hub/part_file.py",
        "CHUNK_SIZE = 1 << 16  # bytes; the most that is read at once",
        "CHUNK_SIZE = 1 << 15  # bytes; the most that is read at once",
        "the same bytes are read in smaller pieces",
    ),
    (
        "hub/part_file.py",
        "return 0",
        "return -1",
        REMOVED,
    ),
    (
        "hub/part_file.py",
        "return 0",
        "return 1",
        REMOVED,
    ),
    (
        "preprocess.py",
        "if TYPE_CHECKING:",
        "if not TYPE_CHECKING:",
        "annotations are not evaluated, and torch is imported by the functions that need it",
    ),
    (
        "models/vit_interface.py",
        "if count < len(self.layers) - 1:",
        "if count < len(self.layers) - 0:",
        "if all blocks are kept, layers and frozen parts are computed anew as they were",
    ),
    (
        "preprocess.py",
        "scaled = values.clip(0, 4095).astype(np.uint32) * 255 // 4095",
        "scaled = values.clip(0, 4096).astype(np.uint32) * 255 // 4095",
        "4096 becomes 255 too",
    ),
    (
        "models/fpn.py",
        "nn.Conv2d(in_width, out_channels, kernel, padding=kernel // 2, bias=False),",
        "nn.Conv2d(in_width, out_channels, kernel, padding=kernel // 3, bias=False),",
        "the kernels have 1 and 3 pixels, for which both give 0 and 1",
    ),
    (
        "wrappers.py",
        "return averaged[0]",
        "return averaged[ -1]",
        "it has one element",
    ),
    (
        "positions.py",
        "rows, columns = _make_waves(count // width), _make_waves(width)",
        "rows, columns = _make_waves(count / width), _make_waves(width)",
        "the width divides the count, and torch.arange takes 6.0 as 6",
    ),
    (
        "models/backbone.py",
        "def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:",
        "def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:",
        ABSTRACT,
    ),
    (
        "models/backbone.py",
        "output_dict: bool = False,",
        "output_dict: bool = True,",
        ABSTRACT,
    ),
    (
        "models/backbone.py",
        "indices: int | Sequence[int] = 1,",
        "indices: int | Sequence[int] = 2,",
        ABSTRACT,
    ),
    (
        "models/backbone.py",
        "intermediates_only: bool = False,",
        "intermediates_only: bool = True,",
        ABSTRACT,
    ),
    (
        "models/backbone.py",
        "indices: int | Sequence[int] = 1,",
        "indices: int | Sequence[int] = 0,",
        ABSTRACT,
    ),
    (
        "models/regnet.py",
        "fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels",
        "fan_out = module.kernel_size[ -1] * module.kernel_size[1] * module.out_channels",
        "all kernels are square",
    ),
    (
        "models/regnet.py",
        "norm: bool = False,",
        "norm: bool = True,",
        "`norm` has no effect for a RegNet; it is accepted because timm's models have it",
    ),
    (
        "recipe/training/losses.py",
        "SOFTPLUS_THRESHOLD = 80.0",
        "SOFTPLUS_THRESHOLD = 79.0",
        "log(1 + exp(z)) equals z in float64 from z = 37 on",
    ),
    (
        "recipe/training/losses.py",
        "x, y = gammas.log() + uniforms.log() / alpha",
        "x, y = gammas.log() - uniforms.log() / alpha",
        "the difference of two equally distributed numbers is symmetric, so x - y keeps its distribution",
    ),
    (
        "recipe/training/losses.py",
        "@staticmethod",
        "",
        "autograd calls forward and backward of the class, not of an instance",
    ),
    (
        "recipe/training/optimizer.py",
        "if not averages[0].is_floating_point():",
        "if not averages[ -1].is_floating_point():",
        "AveragedModel passes tensors grouped by dtype",
    ),
    (
        "recipe/training/optimizer.py",
        "blend(list(map(_get_local_part, averages)), list(map(_get_local_part, values)), 0)",
        "blend(list(map(_get_local_part, averages)), list(map(_get_local_part, values)), -1)",
        "get_ema_multi_avg_fn ignores the number of averaged models",
    ),
    (
        "recipe/training/optimizer.py",
        "blend(list(map(_get_local_part, averages)), list(map(_get_local_part, values)), 0)",
        "blend(list(map(_get_local_part, averages)), list(map(_get_local_part, values)), 1)",
        "get_ema_multi_avg_fn ignores the number of averaged models",
    ),
    (
        "recipe/training/optimizer.py",
        "average.n_averaged.fill_(0 if copy else 1)",
        "average.n_averaged.fill_(0 if copy else 2)",
        "AveragedModel only compares the counter with 0",
    ),
    (
        "recipe/curation/sampling.py",
        "_round_factor(weight * scales[tail]) for weight, tail in zip(weights, in_tail, strict=True)",
        "_round_factor(weight * scales[tail]) for weight, tail in zip(weights, in_tail, strict=False)",
        "both have one value per count",
    ),
    (
        "recipe/hashtags.py",
        "range(sys.maxunicode + 1), lambda point: unicodedata.category(chr(point))[0]",
        "range(sys.maxunicode - 1), lambda point: unicodedata.category(chr(point))[0]",
        "the last two code points are no characters, so they are in none of the categories",
    ),
    (
        "recipe/hashtags.py",
        "skin_tone = 0x1F3FB <= point <= 0x1F3FF",
        "skin_tone = 127994 <= point <= 0x1F3FF",
        "U+1F3FA is an emoji (So), which is kept anyway",
    ),
    (
        "dcp_folder.py",
        "content = read_regular(self.folder / METADATA_FILE, MAX_PICKLE + 1)",
        "content = read_regular(self.folder / METADATA_FILE, MAX_PICKLE + 2)",
        "one byte more is read of a file that is refused in any case",
    ),
)
