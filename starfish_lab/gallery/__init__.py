"""The gallery: what each network answered to every evaluation image, what pruning flipped and healing brought back, class by class."""
