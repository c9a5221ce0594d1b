"""What the reader builds, and the companion that checks it: python -m exercises"""
