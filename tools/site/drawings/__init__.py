"""The course's drawings, in one hand: a pen, and six sheets."""
