"""Reading tar archives so that damage is an error, never a shorter list."""

import lzma
import tarfile
import zlib

# What reading a damaged archive raises, besides errors of the file system.
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OverflowError, ValueError)


class StrictTarInfo(tarfile.TarInfo):
  """For the argument `tarinfo` of `tarfile.open`. A header that is damaged or missing is a `tarfile.ReadError`.

  `tarfile` itself takes a damaged header, unless it is the first, for the end of the archive. Here the end is
  what it is by definition: a block of zeros. A negative size would let the reading go in circles; it is damage.
  """

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    try:
      member = super().frombuf(buf, encoding, errors)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
      raise
    except tarfile.HeaderError as error:
      reason = "it is cut off" if len(buf) < tarfile.BLOCKSIZE else f"a header is damaged ({error})"
      raise tarfile.ReadError(reason) from error
    if member.size < 0:
      raise tarfile.ReadError(f"a header is damaged (size {member.size})")
    return member
