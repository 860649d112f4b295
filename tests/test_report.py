from modeling_cue.training.report import format_table

METRICS = {
    "t2i_R@1": 0.876, "t2i_R@5": 0.95, "t2i_R@10": 1.0, "t2i_median_rank": 1.0, "t2i_mAP@R": 0.5,
    "t2i_chance_R@1": 0.005, "t2i_chance_R@5": 0.025, "ceiling_t2i_R@1": 0.93,
    "i2t_R@1": 0.9, "i2t_R@5": 0.96, "i2t_R@10": 0.99, "rsum": 5.676,
    "composition_R@1": 0.25, "composition_R@5": 0.5, "composition_R@10": 0.75,
    "containment_auroc": 0.9412, "transitivity_violations": 0.0, "radius_specificity_spearman": 0.713,
    "containment_auroc_p2c": 0.95, "containment_auroc_cosine_p2c": 0.8, "containment_ece_p2c": 0.04,
    "containment_auroc_c2i": 0.93, "containment_auroc_hard_c2i": 0.75,
    "radius_mean_image": 0.1, "radius_std_image": 0.06, "radius_mean_phrase": 1.2, "radius_std_phrase": 0.2,
    "runtime": 12.0,
}  # fmt: skip

TABLE = """\
retrieval        R@1    R@5    R@10  MedR  mAP@R  chance R@1  ceiling R@1
-------------------------------------------------------------------------
text -> image  87.6%  95.0%  100.0%   1.0  50.0%        0.5%        93.0%
image -> text  90.0%  96.0%   99.0%     -      -           -            -
composition    25.0%  50.0%   75.0%     -      -           -            -
rsum (of 6)    5.676

containment       AUROC  by cosine  hard AUROC    ECE
-----------------------------------------------------
phrase > caption  0.950      0.800           -  0.040
caption > image   0.930          -       0.750      -

cones
----------------------------------
containment_auroc            0.941
transitivity_violations      0.000
radius_specificity_spearman  0.713

radius (rad)   mean    std
--------------------------
phrase        1.200  0.200
image         0.100  0.060"""


def test_the_table_reads_as_people_expect():
    assert format_table(METRICS) == TABLE


def test_sections_and_columns_without_figures_are_left_out():
    assert format_table({}) == ""
    assert format_table({"runtime": 12.0}) == ""
    table = format_table({"unseen_text_R@1": 0.5, "unseen_text_R@10": 0.75})
    assert table.splitlines()[0].split() == ["retrieval", "R@1", "R@10"]
    assert table.splitlines()[2].split() == ["unseen", "text", "50.0%", "75.0%"]


def test_ceilings_and_chance_get_no_rows_of_their_own():
    assert format_table(METRICS).count("chance") == format_table(METRICS).count("ceiling") == 1
