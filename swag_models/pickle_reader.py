"""Read a pickle as data: its opcodes are interpreted, and nothing that it names is imported.

A pickle is a program for a stack machine. This one builds dicts, lists, numbers and texts, and
calls only the functions that the caller passes. A reference to anything else becomes a placeholder,
so that the training arguments beside a state dict do not prevent it from being read.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from swag_models.errors import CheckpointError

MAX_OPCODES = 4_000_000  # about 10 s; the checkpoint of a ViT-H with its optimizer has 60,000
MAX_ITEMS = 10_000_000  # in all lists and dicts, where a few opcodes can repeat a long list
SIMPLE = (str, int, float, bytes, type(None))  # types of keys
# What training scripts store beside a state dict and what is pickled as a call. Like all
# calls it becomes a placeholder. Calls of other names are rejected, since pickle would run them.
HARMLESS_CALLS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|functools\.partial|copy_?reg\._reconstructor"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|(_?core\.)(multiarray|numeric)"
    r"\.(scalar|_reconstruct|_frombuffer))"
    r"|numpy\.dtypes\.\w+|numpy\.random\.(_pickle|bit_generator)\.\w+"
    r"|datetime\.(datetime|date|time|timedelta|timezone)|zoneinfo\.ZoneInfo\._unpickle"
    r"|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|_codecs\.encode"
    r"|collections\.(defaultdict|Counter|deque|ChainMap)"
    r"|(builtins|__builtin__)\.(set|frozenset|dict|list|tuple|bytearray|bytes|str|int|float|bool"
    r"|complex|slice|x?range|object)"
    r"|torch\.(Size|device|Generator|serialization\._get_layout)"
    r"|torch\.optim\.\w[\w.]*|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.distributed\.(tensor|_tensor|device_mesh|_shard|fsdp|checkpoint)\.\w[\w.]*"
    # Packages of training frameworks and of their configurations: enums are pickled as calls.
    r"|(omegaconf|yacs|easydict|addict|munch|ml_collections|mmengine|mmcv|lightning|fvcore"
    r"|pytorch_lightning|lightning_fabric|torchmetrics|transformers|accelerate|timm"
    r"|torchvision)\.\w[\w.]*"
)


class Placeholder(dict[Any, Any]):
    """An object that is not read; it keeps the items of a dict or of a subclass of dict.

    Attributes:
        name: full name of its class or function.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Record:
    """An object with its state, for callers that need it.

    Attributes:
        name: full name of its class.
        state: what the pickle sets as its state, mostly a dict of attributes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class Reference:
    """A class or function that the pickle names; it is never imported.

    Attributes:
        name: full name.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class PickleReader:
    """Interpreter of one pickle.

    Attributes:
        calls: names of the calls that are not in HARMLESS_CALLS, in order; none was made.
        objects: names of the classes of which the pickle contains objects.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        load_persistent: Callable[[Any], Any],
        *,
        records: bool = False,
    ) -> None:
        """Prepare an interpreter.

        Args:
            functions: name of each function that is called -> what is called instead; it checks
                its arguments.
            load_persistent: persistent id -> the object that it refers to.
            records: read objects as Records, not as Placeholders. They can be keys, and are not
                listed in `objects`.
        """
        self._records = records
        self._functions = functions
        self._load_persistent = load_persistent
        self.calls: dict[str, None] = {}
        self.objects: dict[str, None] = {}
        self._num_items = 0

    def read(self, file: BinaryIO) -> Any:
        """Read the pickle at the file's position, up to its end.

        Raises:
            CheckpointError: the pickle is damaged, too long, or of an unsupported kind.
        """
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > MAX_OPCODES:
                    raise CheckpointError(f"its pickle has more than {MAX_OPCODES:,} operations")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._run(opcode.name, argument)
        # pickletools raises these for opcodes that are cut short or malformed.
        except (ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = str(error) or type(error).__name__
            raise CheckpointError(f"its pickle is damaged: {reason}") from None
        raise CheckpointError("its pickle has no end")

    def _run(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE" | "FROZENSET" | "LIST":
                items = self._pop_mark()
                stack.append(tuple(items) if name == "TUPLE" else items)
            case "DICT":
                items = self._pop_mark()
                stack.append({})
                self._set_items(items)
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS" | "ADDITEMS":
                self._extend(self._pop_mark())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_mark())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case _ if not self._run_reference(name, argument):
                if not isinstance(argument, (str, int, float, bytes, bytearray)):
                    raise CheckpointError(f"its pickle has the unsupported operation {name}")
                stack.append(argument)

    def _run_reference(self, name: str, argument: Any) -> bool:
        """Run an operation that concerns a class, function or persistent id; False for others."""
        stack = self._stack
        match name:
            case "GLOBAL":
                stack.append(Reference(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, attribute = self._pop(2)
                stack.append(Reference(f"{module}.{attribute}"[:1000]))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(self._call(function, arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                cls = self._pop(2 if name == "NEWOBJ" else 3)[0]
                stack.append(self._make_object(cls))
            case "BUILD":
                (state,) = self._pop(1)  # that of a tensor or of a placeholder is not needed
                if isinstance(stack[-1], Record):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(self._load_persistent(stack.pop()))
            case _:
                return False
        return True

    def _pop(self, count: int) -> list[Any]:
        """Remove the last `count` objects, which must be above the last mark."""
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise IndexError("the stack is empty")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        """Remove all objects above the last mark."""
        return self._pop(len(self._stack) - self._marks.pop())

    def _count(self, number: int) -> None:
        self._num_items += number
        if self._num_items > MAX_ITEMS:
            raise CheckpointError(f"its pickle has more than {MAX_ITEMS:,} items")

    def _extend(self, items: list[Any]) -> None:
        self._count(len(items))
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)
        elif not isinstance(self._stack[-1], Placeholder):  # whose items are not needed
            raise TypeError(f"items of a {type(self._stack[-1]).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        self._count(len(items))
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError(f"items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of nested tuples can take exponential time, or overflow the C stack.
            if isinstance(key, (*SIMPLE, Record)):
                target[key] = value
            elif not isinstance(target, Placeholder):
                target[f"a {type(key).__name__}"] = value

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Reference) or not isinstance(arguments, tuple):
            raise TypeError(f"a call of a {type(function).__name__}")
        if function.name in ("collections.OrderedDict", "builtins.dict", "__builtin__.dict"):
            return self._make_dict(*arguments)
        if function.name in self._functions:
            return self._functions[function.name](*arguments)
        if not HARMLESS_CALLS.fullmatch(function.name[:200]):
            self.calls[function.name] = None
        return Placeholder(function.name)

    def _make_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        self._stack.append({})
        if isinstance(pairs, (list, tuple)):
            for pair in pairs:
                self._set_items(list(pair))
        made: dict[Any, Any] = self._stack.pop()
        return made

    def _make_object(self, cls: Any) -> Any:
        if not isinstance(cls, Reference):
            raise TypeError(f"an object of a {type(cls).__name__}")
        if cls.name == "collections.OrderedDict":
            return {}
        if self._records:
            return Record(cls.name)
        self.objects[cls.name] = None
        return Placeholder(cls.name)
