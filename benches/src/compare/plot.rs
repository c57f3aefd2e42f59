//! Bars as SVG: a group for each case with a scale of its own, a bar for each system, and a line over each from the lowest to
//! the highest run.

use std::fmt::Write as _;

use super::figures::figure;
use super::metric::Summary;

pub struct Bar<'a> {
    pub title: &'a str,
    /// One of [`COLOURS`].
    pub colour: usize,
    /// `None` where there is no figure.
    pub summary: Option<Summary>,
}

pub struct Group<'a> {
    pub title: &'a str,
    pub bars: Vec<Bar<'a>>,
}

/// Told apart also without colours, by their lightness.
const COLOURS: [&str; 4] = ["#1b6e5c", "#8fb8de", "#c9d8e6", "#e6a86c"];
const WIDTH: usize = 820;
const LEFT: usize = 130;
const BAR_WIDTH_MAX: f64 = 520.0;
const BAR_HEIGHT: usize = 16;
const ROW_HEIGHT: usize = 20;
const TITLE_HEIGHT: usize = 26;
const GROUP_GAP: usize = 10;

/// A picture with a title.
pub fn bars(title: &str, groups: &[Group<'_>]) -> String {
    let rows = groups.iter().map(|group| TITLE_HEIGHT + group.bars.len() * ROW_HEIGHT + GROUP_GAP);
    let height = TITLE_HEIGHT + 14 + rows.sum::<usize>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    text(&mut svg, 10, TITLE_HEIGHT, "font-size=\"15\" font-weight=\"bold\"", title);
    let mut top = TITLE_HEIGHT + 14;
    for group in groups {
        text(&mut svg, 10, top + 16, "font-weight=\"bold\"", group.title);
        top += TITLE_HEIGHT;
        let highest = group.bars.iter().filter_map(|bar| bar.summary.as_ref()).map(|summary| summary.max);
        let scale = BAR_WIDTH_MAX / highest.fold(f64::MIN_POSITIVE, f64::max);
        for bar in &group.bars {
            draw(&mut svg, bar, top, scale);
            top += ROW_HEIGHT;
        }
        top += GROUP_GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, bar: &Bar<'_>, top: usize, scale: f64) {
    text(svg, LEFT - 8, top + 13, "text-anchor=\"end\"", bar.title);
    let Some(summary) = &bar.summary else {
        text(svg, LEFT + 6, top + 13, "fill=\"#777\"", "no figure");
        return;
    };
    let at = |value: f64| LEFT as f64 + value * scale;
    let (width, middle) = (summary.median * scale, top + BAR_HEIGHT / 2);
    let colour = COLOURS[bar.colour % COLOURS.len()];
    line(
        svg,
        format_args!(
            "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>"
        ),
    );
    let (from, to) = (at(summary.min), at(summary.max));
    line(
        svg,
        format_args!(
            "<line x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\" stroke=\"#222\" stroke-width=\"1.5\"/>"
        ),
    );
    text(svg, to as usize + 8, top + 13, "", &figure(summary.median));
}

fn text(svg: &mut String, x: usize, y: usize, attributes: &str, text: &str) {
    line(svg, format_args!("<text x=\"{x}\" y=\"{y}\" {attributes}>{}</text>", escaped(text)));
}

fn line(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("a string takes what is written");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_run_of_a_group_is_as_wide_as_a_bar_can_be() {
        let bar = |title, values: &[f64]| Bar { title, colour: 0, summary: Summary::of(values) };
        let group =
            Group { title: "a < b", bars: vec![bar("x", &[50.0, 100.0]), bar("y", &[10.0]), bar("z", &[])] };
        let svg = bars("t", &[group]);
        assert!(svg.contains("width=\"390.0\"") && svg.contains("x2=\"650.0\""), "{svg}");
        assert!(svg.contains("width=\"52.0\"") && svg.contains("no figure"), "{svg}");
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3);
    }
}
