"""Finite groups from generators, their subgroups and cosets, representations, and equivariant linear maps."""

from workingpapers.engines.groups.finite import (
    FiniteGroup,
    Subgroup,
    conjugate,
    coset_of,
    cosets,
    double_cosets,
    generate,
    index_two,
    subgroup_classes,
    subgroups,
)
from workingpapers.engines.groups.representations import (
    character,
    cyclic,
    dihedral,
    equivariant_basis,
    extend,
    fixed_vectors,
    induced,
    permutation_matrices,
    symmetric,
)

__all__ = [
    "FiniteGroup",
    "Subgroup",
    "character",
    "conjugate",
    "coset_of",
    "cosets",
    "cyclic",
    "dihedral",
    "double_cosets",
    "equivariant_basis",
    "extend",
    "fixed_vectors",
    "generate",
    "index_two",
    "induced",
    "permutation_matrices",
    "subgroup_classes",
    "subgroups",
    "symmetric",
]
