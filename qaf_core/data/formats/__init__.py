"""The forms images come in: folders, archives, arrays, annotated sets, torchvision."""
