"""Proof that a database is whole: every checksum and every invariant; needs the extra `build`."""

from retro_db.verify.verifying import Verification, silent, verify_database

__all__ = ["Verification", "silent", "verify_database"]
