"""Reading tar archives so that damage is an error, never a shorter list."""

import lzma
import tarfile
import zlib

# What reading a damaged archive raises, besides errors of the file system.
DAMAGE = (
  tarfile.TarError,
  EOFError,
  zlib.error,
  lzma.LZMAError,
  OverflowError,
  ValueError,
  IndexError,
  TypeError,
)

# Of a header that is not a file's own, such as a long name: these are read into memory.
MAX_EXTENSION_BYTES = 2**20
_EXTENSIONS = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
)


class StrictTarInfo(tarfile.TarInfo):
  """For the argument `tarinfo` of `tarfile.open`. A header that is damaged or missing is a `tarfile.ReadError`.

  `tarfile` itself takes a damaged header, unless it is the first, for the end of the archive. Here the end is
  what it is by definition: a block of zeros. A negative size would let the reading go in circles; it is damage.
  Files with holes, whose size says nothing of the archive's, are refused.
  """

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    member = super().frombuf(buf, encoding, errors)
    _check_size(member)
    if member.type in _EXTENSIONS and member.size > MAX_EXTENSION_BYTES:
      raise tarfile.ReadError(f"a header is damaged ({member.size} bytes of names)")
    return member

  @classmethod
  def fromtarfile(cls, archive):
    try:
      member = super().fromtarfile(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
      raise
    except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
      raise tarfile.ReadError("it is cut off") from error
    except tarfile.HeaderError as error:
      raise tarfile.ReadError(f"a header is damaged ({error})") from error
    _check_size(member)  # Once more: an extension may have replaced it.
    if member.issparse():
      raise tarfile.ReadError(f"{member.name[:60]!r} has holes")
    return member


def _check_size(member: tarfile.TarInfo) -> None:
  if member.size < 0:
    raise tarfile.ReadError(f"a header is damaged (size {member.size})")
