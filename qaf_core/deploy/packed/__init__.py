"""The packed file: integer codes at their own bit-width, written, read and opened on its own."""
