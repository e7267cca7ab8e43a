"""The version of both packages, recorded in every manifest."""

__version__ = "0.1.0.dev0"
