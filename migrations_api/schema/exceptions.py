"""What is wrong with a migration that was written with the builder; raised while its file is imported."""


class InvalidBlueprint(ValueError):
    """Django has nothing that this could become."""


class MissingStar(AttributeError):
    """A list of operations stands where one operation is expected."""
