"""What a recipe says of whole phases: the comparison of variants, the trial of curation, the evaluation."""
