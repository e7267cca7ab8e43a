"""`plan`: what annotating a corpus will take, before it is begun; `estimation.py` puts it together."""
