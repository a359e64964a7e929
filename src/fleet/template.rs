//! The template of a release: a process that has loaded the app and listens nowhere, from which workers are forked.
//! Each release has one at most, and a roll's is there before any worker is touched.
//!
//! ```text
//!  Wanted ─▶ Loading ─▶ Ready
//!    ▲          │ └──────┼──▶ Plain
//!    └─ backoff─┴────────┘
//! ```
//!
//! Starts wait for the first load. A template that failed is tried again with backoff, and meanwhile workers start
//! without one: templates make starts cheap, and are never a reason not to serve.

use super::backoff::Backoff;
use super::roll::RollEnd;
use super::{Action, Fleet, Release, Stage};
use crate::states::{Row, may_become};
use std::time::Instant;

/// So many forked workers in a row that ended before they had joined: this app is not to be forked.
const MAX_FAILED_FORKS: u8 = 3;

/// Names one template process for as long as the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TemplateId(pub u64);

/// Why a template is ended by the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TemplateEnd {
    /// Its release is not used any more, or the server stops.
    Unneeded,
    /// It has not loaded the app within the boot timeout.
    LoadsTooLong,
    /// It has not named a worker within the boot timeout.
    Unresponsive,
    /// Its workers end before they have joined.
    ForksFail,
}

/// How far a release's template is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be started, not before that time.
    Wanted { not_before: Instant },
    /// It was asked for, or loads the app.
    Loading { id: TemplateId, until: Instant },
    /// It forks workers. `has_joined`: one of them has joined.
    Ready { id: TemplateId, has_joined: bool },
    /// There is none, and none will be: workers start without.
    Plain,
}

/// A template's phase without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TemplateState {
    Wanted,
    Loading,
    Ready,
    Plain,
}

/// Each state of a release's template, with what may follow.
pub(crate) const TEMPLATE: &[Row<TemplateState>] = &[
    Row {
        state: TemplateState::Wanted,
        next: &[TemplateState::Loading, TemplateState::Plain],
        deadline: "backoff, or none after one whose workers had joined",
    },
    Row {
        state: TemplateState::Loading,
        next: &[TemplateState::Wanted, TemplateState::Ready, TemplateState::Plain],
        deadline: "the boot timeout",
    },
    Row {
        state: TemplateState::Ready,
        next: &[TemplateState::Wanted, TemplateState::Ready, TemplateState::Plain],
        deadline: "the boot timeout, for each fork that was asked for",
    },
    Row { state: TemplateState::Plain, next: &[], deadline: "none" },
];

/// A worker that a template was asked for and has not named.
#[derive(Clone, Copy, Debug)]
struct PendingFork {
    slot: usize,
    until: Instant,
}

/// The template of one release.
#[derive(Debug)]
struct Template {
    phase: Phase,
    backoff: Backoff,
    /// A worker of this release has been forked and has joined, from this process or one before it.
    was_of_use: bool,
    /// In a row.
    failed_forks: u8,
    /// One for each slot at most.
    asked: Vec<PendingFork>,
}

impl Template {
    fn new(phase: Phase) -> Self {
        Template { phase, backoff: Backoff::default(), was_of_use: false, failed_forks: 0, asked: Vec::new() }
    }

    /// The one door for transitions.
    fn enter(&mut self, next: Phase) {
        let (from, to) = (self.phase.state(), next.state());
        debug_assert!(may_become(TEMPLATE, &from, &to), "a template: no way from {from:?} to {to:?}");
        self.phase = next;
        if to != TemplateState::Ready {
            self.asked.clear();
        }
    }

    fn id(&self) -> Option<TemplateId> {
        match self.phase {
            Phase::Loading { id, .. } | Phase::Ready { id, .. } => Some(id),
            Phase::Wanted { .. } | Phase::Plain => None,
        }
    }

    /// It failed before it had been of use.
    fn is_failing(&self) -> bool {
        self.backoff.failures() > 0
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Wanted { not_before } => Some(not_before),
            Phase::Loading { until, .. } => Some(until),
            Phase::Ready { .. } => self.asked.iter().map(|asked| asked.until).min(),
            Phase::Plain => None,
        }
    }
}

impl Phase {
    fn state(self) -> TemplateState {
        match self {
            Phase::Wanted { .. } => TemplateState::Wanted,
            Phase::Loading { .. } => TemplateState::Loading,
            Phase::Ready { .. } => TemplateState::Ready,
            Phase::Plain => TemplateState::Plain,
        }
    }
}

/// What a start may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Template(TemplateId),
    /// A process of its own.
    Plain,
    /// Nothing yet: the template loads the app.
    NotYet,
}

/// The templates of both releases.
#[derive(Debug)]
pub(super) struct Templates {
    is_on: bool,
    last_id: u64,
    good: Template,
    /// Of the roll that goes on, if its release is not adopted.
    next: Option<Template>,
}

impl Templates {
    pub(super) fn new(is_on: bool, now: Instant) -> Self {
        let phase = if is_on { Phase::Wanted { not_before: now } } else { Phase::Plain };
        Templates { is_on, last_id: 0, good: Template::new(phase), next: None }
    }

    fn of(&self, release: Release) -> &Template {
        match (release, &self.next) {
            (Release::New, Some(next)) => next,
            (Release::New, None) | (Release::Good, _) => &self.good,
        }
    }

    fn of_mut(&mut self, release: Release) -> &mut Template {
        match (release, &mut self.next) {
            (Release::New, Some(next)) => next,
            (Release::New, None) | (Release::Good, _) => &mut self.good,
        }
    }

    fn find(&self, id: TemplateId) -> Option<Release> {
        if self.next.as_ref().is_some_and(|next| next.id() == Some(id)) {
            return Some(Release::New);
        }
        (self.good.id() == Some(id)).then_some(Release::Good)
    }

    /// Where a start of that release comes from now.
    pub(super) fn origin(&self, release: Release) -> Origin {
        let template = self.of(release);
        match template.phase {
            Phase::Ready { id, .. } => Origin::Template(id),
            Phase::Plain => Origin::Plain,
            Phase::Wanted { .. } | Phase::Loading { .. } if template.is_failing() => Origin::Plain,
            Phase::Wanted { .. } | Phase::Loading { .. } => Origin::NotYet,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [Some(&self.good), self.next.as_ref()].into_iter().flatten().filter_map(Template::deadline).min()
    }

    fn releases() -> [Release; 2] {
        [Release::Good, Release::New]
    }
}

/// Events in.
impl Fleet {
    /// A template has loaded the app, and may be forked.
    pub(crate) fn template_ready(&mut self, id: TemplateId, now: Instant) {
        if let Some(release) = self.templates.find(id) {
            let template = self.templates.of_mut(release);
            if let Phase::Loading { id, .. } = template.phase {
                template.enter(Phase::Ready { id, has_joined: false });
            }
        }
        self.pump(now);
    }

    /// An app that is not to be forked, or a runtime that cannot: workers of this release start without a template.
    /// Its process ends by itself.
    pub(crate) fn template_refused(&mut self, id: TemplateId, now: Instant) {
        if let Some(release) = self.templates.find(id) {
            self.templates.of_mut(release).enter(Phase::Plain);
        }
        self.pump(now);
    }

    /// A template is gone, or could not be started. The starts that it was asked for are answered by
    /// [`Fleet::spawn_failed`].
    pub(crate) fn template_ended(&mut self, id: TemplateId, now: Instant) {
        if let Some(release) = self.templates.find(id) {
            self.template_failed(release, id, now);
        }
        self.pump(now);
    }
}

/// Getters, and what the rest of the fleet tells.
impl Fleet {
    /// Those that load or may be forked.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn templates(&self) -> impl Iterator<Item = TemplateId> {
        let templates = [Some(&self.templates.good), self.templates.next.as_ref()];
        templates.into_iter().flatten().filter_map(Template::id)
    }

    /// It loads the app, and forks nobody yet.
    pub(crate) fn is_loading(&self, template: TemplateId) -> bool {
        let of_it = self.templates.find(template).map(|release| self.templates.of(release).phase);
        matches!(of_it, Some(Phase::Loading { .. }))
    }

    /// Whether starts of the good release wait for its template.
    pub(super) fn waits_for_template(&self) -> bool {
        self.templates.origin(Release::Good) == Origin::NotYet
    }

    /// Whether workers of the good release are forked from a template that is ready.
    pub(super) fn forks_at_once(&self) -> bool {
        matches!(self.templates.origin(Release::Good), Origin::Template(_))
    }

    /// Whether a roll's starts wait for its template.
    pub(super) fn roll_waits_for_template(&self) -> bool {
        self.templates.origin(Release::New) == Origin::NotYet
    }

    /// A start was asked for: of the template, where one is ready.
    pub(super) fn fork_from(&mut self, slot: usize, release: Release, now: Instant) -> Option<TemplateId> {
        let until = now + self.plan.boot_timeout;
        match self.templates.origin(release) {
            Origin::Template(id) => {
                self.templates.of_mut(release).asked.push(PendingFork { slot, until });
                Some(id)
            }
            Origin::Plain | Origin::NotYet => None,
        }
    }

    /// Whoever was asked for that slot's worker has answered.
    pub(super) fn fork_answered(&mut self, slot: usize) {
        for release in Templates::releases() {
            self.templates.of_mut(release).asked.retain(|asked| asked.slot != slot);
        }
    }

    /// A worker has joined.
    pub(super) fn fork_joined(&mut self, from: Option<TemplateId>) {
        let Some(release) = from.and_then(|id| self.templates.find(id)) else { return };
        let template = self.templates.of_mut(release);
        if let Phase::Ready { id, .. } = template.phase {
            template.enter(Phase::Ready { id, has_joined: true });
            template.was_of_use = true;
            template.failed_forks = 0;
            template.backoff.reset();
        }
    }

    /// A worker has ended before it had joined.
    pub(super) fn fork_failed(&mut self, from: Option<TemplateId>) {
        let Some((id, release)) = from.and_then(|id| Some((id, self.templates.find(id)?))) else { return };
        let template = self.templates.of_mut(release);
        template.failed_forks = template.failed_forks.saturating_add(1);
        if template.failed_forks >= MAX_FAILED_FORKS {
            template.enter(Phase::Plain);
            self.actions.push_back(Action::EndTemplate { template: id, why: TemplateEnd::ForksFail });
        }
    }

    /// Asks for the templates that are due.
    pub(super) fn start_templates(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Running | Stage::Draining) {
            return;
        }
        let until = now + self.plan.boot_timeout;
        for release in Templates::releases() {
            let is_there = release == Release::Good || self.templates.next.is_some();
            if let Phase::Wanted { not_before } = self.templates.of(release).phase
                && is_there
                && not_before <= now
            {
                self.templates.last_id += 1;
                let id = TemplateId(self.templates.last_id);
                self.templates.of_mut(release).enter(Phase::Loading { id, until });
                self.actions.push_back(Action::StartTemplate { template: id, release });
            }
        }
    }

    /// Ends those that load for too long, or do not answer.
    pub(super) fn expire_templates(&mut self, now: Instant) {
        for release in Templates::releases() {
            let template = self.templates.of(release);
            let why = match template.phase {
                Phase::Loading { .. } => TemplateEnd::LoadsTooLong,
                Phase::Ready { .. } => TemplateEnd::Unresponsive,
                Phase::Wanted { .. } | Phase::Plain => continue,
            };
            let is_due = template.deadline().is_some_and(|deadline| deadline <= now);
            if let Some(id) = template.id().filter(|_| is_due) {
                self.actions.push_back(Action::EndTemplate { template: id, why });
                self.template_failed(release, id, now);
            }
        }
    }

    /// A template is of no use any more, or gone: another one is tried. A roll whose template fails before any of its
    /// workers has joined ends, unless the good release does without one as well.
    fn template_failed(&mut self, release: Release, id: TemplateId, now: Instant) {
        let has_template = !self.templates.good.is_failing();
        // Of a release on trial a worker has joined: the trial's verdict ends the roll.
        let is_judging = self.is_judging();
        let template = self.templates.of_mut(release);
        // A roll that goes on without one is not ended by the next try, and one whose workers serve not at all.
        let is_first = !template.is_failing() && !template.was_of_use;
        let ends_roll = release == Release::New && has_template && is_first && !is_judging;
        if let Phase::Ready { has_joined: true, .. } = template.phase {
            template.backoff.reset();
            return template.enter(Phase::Wanted { not_before: now });
        }
        let not_before = now + template.backoff.fail();
        template.enter(Phase::Wanted { not_before });
        if ends_roll {
            self.end_roll(RollEnd::TemplateFailed { template: id });
        }
    }

    /// A roll begins, or begins anew: its template is another one.
    pub(super) fn begin_roll_template(&mut self, now: Instant) {
        self.end_roll_template();
        if self.templates.is_on {
            self.templates.next = Some(Template::new(Phase::Wanted { not_before: now }));
        }
    }

    /// The roll's release is the good one from now on.
    pub(super) fn adopt_template(&mut self) {
        if let Some(next) = self.templates.next.take() {
            let old = std::mem::replace(&mut self.templates.good, next);
            self.end_template(&old);
        }
    }

    /// The roll has ended, adopted or not.
    pub(super) fn end_roll_template(&mut self) {
        if let Some(next) = self.templates.next.take() {
            self.end_template(&next);
        }
    }

    /// No worker will be started any more.
    pub(super) fn end_templates(&mut self) {
        self.end_roll_template();
        self.templates.is_on = false;
        let good = std::mem::replace(&mut self.templates.good, Template::new(Phase::Plain));
        self.end_template(&good);
    }

    fn end_template(&mut self, template: &Template) {
        if let Some(id) = template.id() {
            self.actions.push_back(Action::EndTemplate { template: id, why: TemplateEnd::Unneeded });
        }
    }
}
