//! A difference by the fewest steps and messages, and in words.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Round;
use super::message::Step;
use super::play::{Script, World};
use super::transcript::Transcript;

/// Time for which less is tried.
const LIMIT: Duration = Duration::from_secs(40);
/// Number of times that a conversation that differed is had again, at most, before it counts as one that does not
/// always.
const AGAIN: usize = 3;

/// Steps as they are printed.
pub(super) fn steps(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |mut text, step| {
        let _ = writeln!(text, "  {step}");
        text
    })
}

/// Leaves out what a difference does not need; the rest, and what differs.
pub(super) fn shrink(world: &mut World, servers: usize, found: Round) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    let mut best = found;
    let mut repeats = false;
    for _ in 0..AGAIN {
        let again = Round::of(world, Script::Steps(best.direct.steps.clone()), servers)?;
        if again.differs() {
            (best, repeats) = (again, true);
            break;
        }
    }
    if repeats {
        best = fewer_steps(world, servers, best, deadline)?;
        best = fewer_messages(world, servers, best, deadline)?;
    }
    let note = if repeats { "" } else { "  (it did not come again)\n" };
    Ok(format!("{note}{}{}", steps(&best.direct.steps), difference(&best)))
}

/// Leaves out steps, many at a time and then fewer.
fn fewer_steps(world: &mut World, servers: usize, mut round: Round, deadline: Instant) -> Result<Round> {
    let mut size = round.direct.steps.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < round.direct.steps.len() {
            let all = round.direct.steps.iter().enumerate();
            let rest = all.filter(|(at, _)| !(start..start + size).contains(at)).map(|(_, step)| step.clone());
            match attempt(world, servers, rest.collect(), deadline)? {
                Some(less) => round = less,
                None => start += size,
            }
        }
        size /= 2;
    }
    Ok(round)
}

/// Leaves out messages one by one.
fn fewer_messages(world: &mut World, servers: usize, mut round: Round, deadline: Instant) -> Result<Round> {
    for at in (0..round.direct.steps.len()).rev() {
        let mut out = 0;
        while let Some(step) = round.direct.steps.get(at).filter(|step| out < step.action.messages().len()) {
            let mut fewer = round.direct.steps.clone();
            let mut rest = step.action.messages().to_vec();
            rest.remove(out);
            fewer[at].action = step.action.with(rest);
            match attempt(world, servers, fewer, deadline)? {
                Some(less) => round = less,
                None => out += 1,
            }
        }
    }
    Ok(round)
}

fn attempt(world: &mut World, servers: usize, steps: Vec<Step>, deadline: Instant) -> Result<Option<Round>> {
    if Instant::now() > deadline {
        return Ok(None);
    }
    let round = Round::of(world, Script::Steps(steps), servers)?;
    // Less may wait for what is no longer said.
    Ok((round.differs() && !round.direct_is_silent()).then_some(round))
}

/// Difference, in words.
fn difference(round: &Round) -> String {
    let mut text = String::new();
    for (session, (direct, through)) in round.direct.heard.iter().zip(&round.through.heard).enumerate() {
        compare(&mut text, &format!("{session} hears"), &direct.words, &through.words);
        let notifications = |heard: &Transcript| heard.notifications.clone();
        compare(&mut text, &format!("{session} is notified"), &notifications(direct), &notifications(through));
    }
    for (number, (direct, through)) in round.direct.states.iter().zip(&round.through.states).enumerate() {
        compare(&mut text, &format!("state {number}"), direct, through);
    }
    text
}

/// The first place where two lists differ, with what stands around it.
fn compare(text: &mut String, what: &str, direct: &[String], through: &[String]) {
    const AROUND: usize = 2;
    if direct == through {
        return;
    }
    let at = direct.iter().zip(through).take_while(|(direct, through)| direct == through).count();
    let _ = writeln!(text, "  {what}, at {at}:");
    for word in &direct[at.saturating_sub(AROUND)..at] {
        let _ = writeln!(text, "      both: {word}");
    }
    for (name, words) in [("direct", direct), ("proxy ", through)] {
        if words.len() == at {
            let _ = writeln!(text, "    {name}: (nothing more)");
        }
        for word in words.iter().skip(at).take(1 + AROUND) {
            let _ = writeln!(text, "    {name}: {word}");
        }
    }
}
