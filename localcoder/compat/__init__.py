"""localcoder behind other programs' interfaces."""
