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

# The most that an extension header, such as a long name, may hold: tarfile reads it into memory.
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
  a block of zeros, as the format defines it. A negative size, which would make the reading go in circles, is
  damage. Sparse files are refused: their size says nothing of the archive's.
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
    _check_size(member)  # Once more: an extension may have replaced the size.
    if member.issparse():
      raise tarfile.ReadError(f"{member.name[:60]!r} has holes")
    return member


def _check_size(member: tarfile.TarInfo) -> None:
  if member.size < 0:
    raise tarfile.ReadError(f"a header is damaged (size {member.size})")
