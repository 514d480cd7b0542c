"""What several parts need and none owns: writing files, ranks' tensors, names of known weights.

A leaf: it imports none of the parts, and every part may import it. It is no public interface.
"""
