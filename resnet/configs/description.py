"""What a folder of record files is of: `description.json`, which build_imagenet_records writes beside them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from resnet.utils.errors import UserError

FILE = "description.json"


@dataclasses.dataclass(frozen=True)
class Description:
  """A data set of record files.

  Attributes:
    classes: their names, in the order of the labels.
    folders: the name of each class's folder of pictures, in the same order; empty if they had none.
    counts: examples, by split.
    bytes: of all record files of a split together.
    sizes: "height" and "width" of a split's pictures, pixels: the smallest, the median, the largest.
  """

  classes: Sequence[str]
  folders: Sequence[str] = ()
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  sizes: Mapping[str, Mapping[str, Sequence[int]]] = dataclasses.field(default_factory=dict)


def read_description(folder: str | os.PathLike) -> Description | None:
  """The description of the record files in `folder`; None if they have none.

  Raises:
    UserError: it cannot be read, or is no description; the error names it.
  """
  path = pathlib.Path(folder, FILE)
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  known = [field.name for field in dataclasses.fields(Description)]
  if not (
    isinstance(fields, dict)
    and fields.get("classes")
    and all(_is_names(fields.get(name, [])) for name in known[:2])
    and all(isinstance(fields.get(name, {}), dict) for name in known[2:])
  ):
    raise UserError(f'{path} must be like {{"classes": ["cat", "dog"]}}, names in the order of the labels')
  return Description(**{name: fields[name] for name in known if name in fields})


def write_description(folder: str | os.PathLike, description: Description) -> None:
  """Writes it as JSON; the file is whole or not there."""
  temporary = pathlib.Path(folder, f"{FILE}.tmp")
  temporary.write_text(json.dumps(dataclasses.asdict(description), indent=1) + "\n", encoding="utf-8")
  temporary.replace(temporary.with_suffix(""))


def _is_names(value: object) -> bool:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)
