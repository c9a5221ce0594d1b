"""What makes and checks this repository: counts of lines, pictures, and the site."""
