"""What a drawn street scene is made of: the plan, the parts, and how they are painted."""
