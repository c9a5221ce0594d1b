"""What the site shows of the code: generated before it is built, executed when it is tested."""
