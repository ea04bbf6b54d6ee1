"""The promises that more than one norm cannot keep, by the names of their tests."""

CONSTANT = "a_constant_added_everywhere_changes_nothing"
PIXELS = "one_pixel_planes"
ONE_ACTIVATION = "keeps_one_activation_for_the_backward_pass"
