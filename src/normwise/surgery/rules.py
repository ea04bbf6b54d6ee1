"""Which spec a norm layer is to become: glob patterns on module paths, first match wins."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from normwise.errors import UsageError
from normwise.layers.spec import NormSpec, parse
from normwise.surgery.find import Found

Spec = str | NormSpec


@dataclass(frozen=True)
class Rules:
    """The user's wish: pairs of pattern and spec (None is `keep`), and the patterns of `where`."""

    pairs: tuple[tuple[str, NormSpec | None], ...]
    where: tuple[str, ...]

    @classmethod
    def read(cls, to: Spec | Mapping[str, Spec], where: str | Iterable[str]) -> "Rules":
        patterns = (where,) if isinstance(where, str) else tuple(where)
        if isinstance(to, Mapping) and to:
            return cls(tuple((str(pattern), _spec(spec)) for pattern, spec in to.items()), patterns)
        return cls((("*", _spec(to)),), patterns)

    def choose(self, layer: Found) -> tuple[NormSpec | None, str]:
        """The spec for a layer, or None and why not. All paths of a tied layer must agree."""
        wanted = [path for path in layer.paths if any(fnmatchcase(path, pattern) for pattern in self.where)]
        chosen = {spec: path for path in wanted for spec in self._first(path)}
        if len(chosen) > 1:
            said = " and ".join(f"{spec or 'keep'} at {path!r}" for spec, path in chosen.items())
            raise UsageError(f"swap: one layer at several paths is to become {said}; give them one spec.")
        if not wanted:
            return None, f"its path does not match where={', '.join(self.where)}"
        if not chosen:
            return None, "no pattern matches its path"
        return next(iter(chosen)), "to be kept"

    def require_match(self, paths: list[str]) -> None:
        """Raises UsageError where no layer is meant: nothing could be replaced."""
        meant = [path for path in paths if any(fnmatchcase(path, pattern) for pattern in self.where)]
        if not self.where or any(self._first(path) for path in meant):
            return
        which = f"the mapping's {_quoted(p for p, _ in self.pairs)}" if meant else f"where={_quoted(self.where)}"
        among = f" of where={_quoted(self.where)}" if 0 < len(meant) < len(paths) else ""
        known = meant or paths
        more = f" and {len(known) - 5} more" if len(known) > 5 else ""
        raise UsageError(
            f"swap: {which} matches no normalization layer{among}, known are: {_quoted(known[:5])}{more}; "
            "give such a path, or a pattern for several such as 'layer1.*'."
        )

    def idle(self, paths: Iterable[str]) -> list[str]:
        """The patterns that match no path at all: likely a slip of the pen."""
        every, patterns = list(paths), dict.fromkeys([*self.where, *(pattern for pattern, _ in self.pairs)])
        return [pattern for pattern in patterns if not any(fnmatchcase(path, pattern) for path in every)]

    def _first(self, path: str) -> list[NormSpec | None]:
        return [spec for pattern, spec in self.pairs if fnmatchcase(path, pattern)][:1]


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(map(repr, texts))


def _spec(spec: object) -> NormSpec | None:
    if not isinstance(spec, str | NormSpec):
        raise UsageError(
            "swap: a norm is given as a spec such as 'group:8', or as a mapping from patterns on module "
            f"paths to specs, got {spec!r}."
        )
    return None if spec == "keep" else parse(spec)
