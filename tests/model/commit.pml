/* The commit rule of a migration: who owns the VM, whatever fails.
 *
 * One sender T, one receiver R, one VM, one migration.  docs/model.md says what each
 * name stands for, what is left out, and how to run it.
 *
 * Every guarded command below is one atomic step; a crash may come between any two.
 * Journals exist twice: tj/rj is what a read of the file gives (the page cache), tjd/rjd is
 * what is on the disk.  A daemon crash loses the daemon's state only; a host crash also loses
 * the domain, the attachments and whatever part of the journal was not synced.
 * The network is a set of messages: one that is in it may arrive now, later, again, in any
 * order, or never.
 *
 * -D switches that break one rule each (the checker must then find an error):
 *   safety    NO_FSYNC_COMMIT NO_FSYNC_DONE NO_FSYNC_ON_RESTART ABORT_DOES_NOT_WIN
 *             NO_ASK_BEFORE_START RESUME_ON_TIMEOUT UNKNOWN_IS_ABORTED ABORT_BEFORE_DEACTIVATE
 *   liveness  DELETE_IS_ACK ASK_ONLY ACK_BEFORE_JOURNAL ACK_BEFORE_UNPAUSE OPEN_BY_LOOKS
 * -D switches that restrict the world: NO_HOST_CRASH NO_STRAY_404
 * -DONLY=n checks one property alone: 1 never two, 2 never none, 3 the second fence.
 * -DLIVE adds `quiet`: after it no more faults (any number of them before).
 */

mtype:domain = { NoDomain, Paused, Running };

mtype:sender = { T_Down, T_Booting, T_Copying, T_Sending, T_Suspended, T_Released, T_WritingDone, T_InDoubt,
  T_WritingCommitted, T_Destroying, T_AckingCommit, T_Gone,
  T_WritingAborted, T_Resuming, T_AckingAbort, T_RollingBack, T_Deleting, T_Owns };

mtype:receiver = { R_Down, R_Booting, R_Open, R_Restoring, R_Activated, R_WritingCommit, R_Committed, R_Settled,
  R_Undoing, R_WritingAbort, R_Aborted, R_Forgetting, R_Forgot };

mtype:record = { Begun, Memory, Done, Committed, Aborted, EndedHere, EndedThere, ForgotCommit, ForgotAbort };

/* requests, T to R */
#define MEMORY      1   /* PUT memory, the stream's end */
#define DONE        2   /* PUT control `done` */
#define GET         4   /* GET control */
#define DELETE      8   /* DELETE: abort if that is still possible */
#define ACK_COMMIT 16   /* the acknowledgement: T has "committed" on its disk */
#define ACK_ABORT  32   /* the acknowledgement: T has "aborted" on its disk */
/* answers, R to T */
#define MEMORY_IN   1   /* 200 to PUT memory */
#define OPEN        2   /* nothing decided (also 409 to `done`) */
#define COMMITTED   4
#define ABORTED     8
#define UNKNOWN    16   /* 404 */

#define PUT(set, m) set = set | (m)
#define TAKE(set, m) set = set & ~(m)

mtype:sender tst = T_Copying;
mtype:domain tdom = Running;
bool tdisk = true;          /* T's VDIs are active */
mtype:record tj = Begun, tjd = Begun;
bool cancelled;             /* asked to cancel while in doubt */

mtype:receiver rst = R_Open;
mtype:domain rdom = NoDomain;
bool rdisk;                 /* R's VDIs are active for the domain */
bool rtargets = true;       /* R's targets and datapaths of phase 2 and 3 are alive */
mtype:record rj = Begun, rjd = Begun;

byte requests, answers;

/* ghosts: only the safety properties read them */
#ifndef LIVE
#define GHOST(assignment) assignment
bool r_ran;                 /* the guest has executed at R */
bool t_destroyed;           /* T destroyed its copy because of "committed" */
bool said_committed, said_aborted;
#else
#define GHOST(assignment) skip
#endif

#ifdef LIVE
bool quiet;
#define FAULTY (!quiet)
#define LAST quiet          /* before that, World takes messages away */
#else
#define FAULTY true
#define LAST true
#endif

#define T_UP (tst != T_Down && tst != T_Booting)
#define R_UP (rst != R_Down && rst != R_Booting)

/* T's own knowledge lets it run the guest */
#define T_MAY (tst == T_Copying || tst == T_Sending || tst == T_Suspended || tst == T_Released || \
  tst == T_RollingBack || \
  tst == T_Resuming || tst == T_Deleting || tst == T_AckingAbort || tst == T_Owns)
#define R_MAY (rst == R_Committed || rst == R_Settled || rj == ForgotCommit)
#define T_BEATS (tst == T_Copying || tst == T_Sending || tst == T_Suspended || tst == T_Released || \
  tst == T_WritingDone || \
  tst == T_InDoubt)

/* who owns the VM, for the liveness properties */
#define T_OWNS (tst == T_Deleting || tst == T_AckingAbort || tst == T_Owns)
#define R_OWNS (rst == R_Settled || (rst == R_Forgot && rj == ForgotCommit))
#define T_LET_GO (tst == T_AckingCommit || tst == T_Gone)
#define R_LET_GO (rst == R_Aborted || (rst == R_Forgot && rj == ForgotAbort))
#define OWNED ((T_OWNS && R_LET_GO) || (R_OWNS && T_LET_GO))
#define RUNS_ONCE ((tdom == Running && rdom != Running) || (rdom == Running && tdom == NoDomain))
#define CLEAN ((tst == T_Owns && rst == R_Forgot && rj == ForgotAbort) || \
  (tst == T_Gone && rst == R_Forgot && rj == ForgotCommit))

/* ------------------------------------------------------------------ the sender's own steps */

active proctype Sender() {
end:
  do
  :: d_step { tst == T_Down -> tst = T_Booting }
  :: atomic { tst == T_Booting ->
#ifndef NO_FSYNC_ON_RESTART
      tjd = tj;               /* what was read may have been in the page cache only */
#endif
      if
      :: tj == Begun && tdom == Running && tdisk -> tst = T_Copying   /* phase 1 to 3, it goes on */
      :: tj == Begun || tj == Memory -> tst = T_RollingBack
#ifdef NO_ASK_BEFORE_START
      :: tj == Done -> tst = T_Resuming
#else
      :: tj == Done -> tst = T_InDoubt
#endif
      :: tj == Committed -> tst = T_Destroying
      :: tj == Aborted -> tst = T_Resuming
      :: tj == EndedHere -> tst = T_Owns
      :: tj == EndedThere -> tst = T_Gone
      fi }
  :: d_step { tst == T_Copying -> tj = Memory; tst = T_Sending }
  :: d_step { tst == T_Sending -> tjd = tj; tdom = Paused; PUT(requests, MEMORY); tst = T_Suspended }
  :: d_step { tst == T_Suspended -> tdisk = false; tst = T_Released }
  :: d_step { tst == T_Released && !(requests & MEMORY) && !(answers & MEMORY_IN) -> tst = T_RollingBack }
  :: d_step { tst == T_WritingDone ->
#ifndef NO_FSYNC_DONE
      tjd = tj;
#endif
      PUT(requests, DONE); tst = T_InDoubt }
  :: d_step { tst == T_InDoubt && !(requests & GET) -> PUT(requests, GET) }
  :: d_step { tst == T_WritingCommitted -> tjd = tj; tst = T_Destroying }
  :: d_step { tst == T_Destroying -> tdom = NoDomain; GHOST(t_destroyed = true); tst = T_AckingCommit }
  :: d_step { tst == T_AckingCommit && !(requests & ACK_COMMIT) -> PUT(requests, ACK_COMMIT) }
  :: d_step { tst == T_WritingAborted -> tjd = tj; tst = T_Resuming }
  :: d_step { (tst == T_Resuming || tst == T_RollingBack) && tdom == Paused && !tdisk -> tdisk = true }
  :: d_step { tst == T_Resuming && (tdom != Paused || tdisk) ->
      if :: tdom == Paused -> tdom = Running :: else fi;
      tst = T_AckingAbort }
  :: d_step { tst == T_RollingBack && (tdom != Paused || tdisk) ->
      if :: tdom == Paused -> tdom = Running :: else fi;
      tst = T_Deleting }
  :: d_step { tst == T_Deleting && !(requests & DELETE) -> PUT(requests, DELETE) }
  :: d_step { tst == T_AckingAbort && !(requests & ACK_ABORT) -> PUT(requests, ACK_ABORT) }
  od
}

/* What T does with an answer; an answer that says nothing to the present state is dropped.
 * One process per kind, so that fairness means: each kind that is sent gets through. */
proctype AnswerArrives(byte m) {
end:
  do
  :: atomic { T_UP && (answers & m) && !(m == MEMORY_IN && tst == T_Suspended) ->
      if
      :: FAULTY                       /* it stays: it may arrive again */
      :: LAST -> TAKE(answers, m)
      fi;
      if
      :: tst == T_Released && m == MEMORY_IN -> tj = Done; tst = T_WritingDone
      :: (tst == T_Suspended || tst == T_Released) && (m == ABORTED || m == UNKNOWN) -> tst = T_RollingBack

      :: tst == T_InDoubt && m == COMMITTED ->
#ifdef ACK_BEFORE_JOURNAL
          PUT(requests, ACK_COMMIT);
#endif
          tj = Committed; tst = T_WritingCommitted
      :: tst == T_InDoubt && m == ABORTED -> tj = Aborted; tst = T_WritingAborted
      :: tst == T_InDoubt && m == OPEN ->
#ifdef ASK_ONLY
          skip
#else
          if
          :: cancelled -> PUT(requests, DELETE)
          :: !cancelled -> PUT(requests, DONE)
          fi
#endif
      :: tst == T_InDoubt && m == UNKNOWN ->
#ifdef UNKNOWN_IS_ABORTED
          tj = Aborted; tst = T_WritingAborted
#else
          skip
#endif

      :: tst == T_Deleting && m == ABORTED -> tst = T_AckingAbort
      :: tst == T_Deleting && m == UNKNOWN -> tj = EndedHere; tst = T_Owns
      :: tst == T_AckingAbort && m == UNKNOWN -> tj = EndedHere; tst = T_Owns
      :: tst == T_AckingCommit && m == UNKNOWN -> tj = EndedThere; tst = T_Gone
      :: else
      fi }
  od
}

/* ---------------------------------------------------------------- the receiver's own steps */

active proctype Receiver() {
end:
  do
  :: d_step { rst == R_Down -> rst = R_Booting }
  :: atomic { rst == R_Booting ->
#ifndef NO_FSYNC_ON_RESTART
      rjd = rj;
#endif
      if
#ifdef OPEN_BY_LOOKS
      :: (rj == Begun || rj == Memory) && rdom == NoDomain && rtargets -> rst = R_Open
#else
      :: rj == Begun && rtargets -> rst = R_Open     /* phase 2 or 3, all alive */
#endif
      :: rj == Begun || rj == Memory -> rst = R_Undoing
      :: rj == Committed -> rst = R_Committed
      :: rj == Aborted -> rst = R_Undoing
      :: rj == ForgotCommit || rj == ForgotAbort -> rst = R_Forgot
      fi }
  :: d_step { rst == R_Restoring -> rjd = rj; rdom = Paused; PUT(answers, MEMORY_IN); rst = R_Open }
  :: d_step { rst == R_Activated -> rj = Committed; rst = R_WritingCommit }
  :: d_step { rst == R_WritingCommit ->
#ifndef NO_FSYNC_COMMIT
      rjd = rj;
#endif
      rst = R_Committed }
  :: d_step { rst == R_Committed ->
      if :: rdom == Paused -> rdom = Running; GHOST(r_ran = true) :: else fi;
      rst = R_Settled }
#ifdef ABORT_BEFORE_DEACTIVATE
  :: d_step { rst == R_Undoing -> rj = Aborted; rst = R_WritingAbort }
  :: d_step { rst == R_Aborted && (rdisk || rdom != NoDomain) -> rdisk = false; rdom = NoDomain }
#else
  :: d_step { rst == R_Undoing && rdisk -> rdisk = false }
  :: d_step { rst == R_Undoing && !rdisk && rdom != NoDomain -> rdom = NoDomain }
  :: d_step { rst == R_Undoing && !rdisk && rdom == NoDomain && rtargets -> rtargets = false }
  :: d_step { rst == R_Undoing && !rdisk && rdom == NoDomain && !rtargets -> rj = Aborted; rst = R_WritingAbort }
#endif
  :: d_step { rst == R_WritingAbort ->
#ifndef NO_FSYNC_COMMIT
      rjd = rj;
#endif
      rst = R_Aborted }
  :: d_step { rst == R_Forgetting -> rjd = rj; rst = R_Forgot }
  :: d_step { (rst == R_Open || rst == R_Restoring) && !T_BEATS -> rst = R_Undoing }  /* the heartbeat is gone */
  od
}

inline answer_by_state() {
  if
  :: rst == R_Committed || rst == R_Settled -> PUT(answers, COMMITTED); GHOST(said_committed = true)
  :: rst == R_Aborted -> PUT(answers, ABORTED); GHOST(said_aborted = true)
  :: rst == R_Forgot -> PUT(answers, UNKNOWN)
  :: else -> PUT(answers, OPEN)
  fi
}

proctype RequestArrives(byte m) {
end:
  do
  :: atomic { R_UP && (requests & m) ->
      if
      :: FAULTY
      :: LAST -> TAKE(requests, m)
      fi;
      if
      :: m == MEMORY && rst == R_Open && rdom == NoDomain -> rj = Memory; rst = R_Restoring
      :: m == DONE && rst == R_Open && rdom == Paused ->
          if
          :: rdisk = true; rst = R_Activated
          :: rst = R_Undoing                    /* activation failed, nothing is active */
          :: rdisk = true; rst = R_Undoing      /* activation failed, some disks are active */
          fi
      :: m == DELETE && (rst == R_Open || rst == R_Restoring || rst == R_Activated) -> rst = R_Undoing
#ifdef ABORT_DOES_NOT_WIN
      :: m == DONE && rst == R_Aborted -> rdom = Paused; rdisk = true; rst = R_Activated
#endif
#ifdef DELETE_IS_ACK
      :: m == DELETE && rst == R_Settled -> rj = ForgotCommit; rst = R_Forgetting
      :: m == DELETE && rst == R_Aborted -> rj = ForgotAbort; rst = R_Forgetting
#endif
#ifdef ACK_BEFORE_UNPAUSE
      :: m == ACK_COMMIT && rst == R_Committed -> rj = ForgotCommit; rst = R_Forgetting
#endif
      :: m == ACK_COMMIT && rst == R_Settled -> rj = ForgotCommit; rst = R_Forgetting
      :: m == ACK_ABORT && rst == R_Aborted -> rj = ForgotAbort; rst = R_Forgetting
      :: else -> answer_by_state()
      fi }
  od
}

/* ------------------------------------------------- what people, clocks and hardware may do */

active proctype World() {
end:
  do
  :: d_step { tst == T_Copying || tst == T_Sending || tst == T_Suspended || tst == T_Released -> tst = T_RollingBack }
  :: d_step { tst == T_InDoubt && !cancelled -> cancelled = true; PUT(requests, DELETE) }
  :: d_step { rst == R_Open || rst == R_Restoring || rst == R_Activated -> rst = R_Undoing }  /* R's task cancelled, heartbeat late */
  :: d_step { T_OWNS && tdom == NoDomain -> tdisk = true; tdom = Running }             /* VM.start at T */
  :: d_step { R_OWNS && rdom == NoDomain -> rdisk = true; rdom = Running; GHOST(r_ran = true) } /* VM.start at R */
#ifdef RESUME_ON_TIMEOUT
  :: d_step { tst == T_InDoubt -> tst = T_Resuming }
#endif
#ifdef LIVE
  :: requests + 1 > 0         /* nothing of the kind has to happen */
#endif
  :: d_step { FAULTY && tst != T_Down -> tst = T_Down; cancelled = false }
  :: d_step { FAULTY && rst != R_Down -> rst = R_Down }
#ifndef NO_HOST_CRASH
  :: atomic { FAULTY -> tst = T_Down; cancelled = false; tdom = NoDomain; tdisk = false;
      if :: tj = tjd :: tjd = tj fi }
  :: atomic { FAULTY -> rst = R_Down; rdom = NoDomain; rdisk = false; rtargets = false;
      if :: rj = rjd :: rjd = rj fi }
#endif
#ifndef NO_STRAY_404
  :: d_step { FAULTY && requests != 0 -> PUT(answers, UNKNOWN) }   /* something else answers at that address */
#endif
#ifdef LIVE
  :: d_step { FAULTY && (requests & MEMORY) -> TAKE(requests, MEMORY) }
  :: d_step { FAULTY && (requests & DONE) -> TAKE(requests, DONE) }
  :: d_step { FAULTY && (requests & GET) -> TAKE(requests, GET) }
  :: d_step { FAULTY && (requests & DELETE) -> TAKE(requests, DELETE) }
  :: d_step { FAULTY && (requests & ACK_COMMIT) -> TAKE(requests, ACK_COMMIT) }
  :: d_step { FAULTY && (requests & ACK_ABORT) -> TAKE(requests, ACK_ABORT) }
  :: d_step { FAULTY && (answers & MEMORY_IN) -> TAKE(answers, MEMORY_IN) }
  :: d_step { FAULTY && (answers & OPEN) -> TAKE(answers, OPEN) }
  :: d_step { FAULTY && (answers & COMMITTED) -> TAKE(answers, COMMITTED) }
  :: d_step { FAULTY && (answers & ABORTED) -> TAKE(answers, ABORTED) }
  :: d_step { FAULTY && (answers & UNKNOWN) -> TAKE(answers, UNKNOWN) }
  :: d_step { FAULTY -> quiet = true }
#endif
  od
}

/* ----------------------------------------------------------------------------- properties */

#ifndef LIVE
active proctype Monitor() {
end:
  if
#if !defined(ONLY) || ONLY == 1
  :: atomic { tdom == Running && rdom == Running -> assert(false) }      /* never two */
#endif
#if !defined(ONLY) || ONLY == 2
  :: atomic { t_destroyed && (rj == Aborted || rj == ForgotAbort) -> assert(false) }   /* never none */
#endif
#if !defined(ONLY) || ONLY == 3
  :: atomic { tdisk && rdisk -> assert(false) }                          /* the second fence */
#endif
#ifndef ONLY
  :: atomic { T_MAY && R_MAY -> assert(false) }                          /* never two that may */
  :: atomic { tdom == Running && r_ran -> assert(false) }                /* never back in time */
  :: atomic { (tdom == Running && !tdisk) || (rdom == Running && !rdisk) -> assert(false) } /* no disk */
  :: atomic { said_committed && said_aborted -> assert(false) }          /* one decision */
  :: atomic { tst == T_Deleting && (answers & COMMITTED) -> assert(false) } /* too late without done */
#endif
  fi
}
#endif

init {
  atomic {
    run RequestArrives(MEMORY); run RequestArrives(DONE); run RequestArrives(GET);
    run RequestArrives(DELETE); run RequestArrives(ACK_COMMIT); run RequestArrives(ACK_ABORT);
    run AnswerArrives(MEMORY_IN); run AnswerArrives(OPEN); run AnswerArrives(COMMITTED);
    run AnswerArrives(ABORTED); run AnswerArrives(UNKNOWN)
  }
}

/* The liveness claims: once faults have ended, infinitely often not GOOD is an error.
 * (ltl { [] (quiet -> <> [] GOOD) }, negated, as a deterministic automaton: much cheaper.) */
#ifdef LIVE
#define NEVER(name, GOOD) never name { \
  do :: !quiet :: quiet -> break od; \
good: do :: GOOD :: !(GOOD) -> goto accept_bad od; \
accept_bad: do :: !(GOOD) :: GOOD -> goto good od }
NEVER(owned, OWNED)
NEVER(runs_once, (OWNED && RUNS_ONCE))   /* for NO_HOST_CRASH */
NEVER(clean, CLEAN)                       /* for NO_STRAY_404; implies OWNED */
#endif

/* Each of these is false: its counterexample shows that the state can be reached. */
#ifdef REACH
ltl reach_commit { [] !(tst == T_Gone && rst == R_Forgot && rdom == Running) }
ltl reach_abort_in_doubt { [] !(tst == T_AckingAbort && tjd == Aborted && tdom == Running && rst == R_Aborted) }
ltl reach_commit_halted_at_receiver { [] !(rst == R_Settled && rdom == NoDomain && t_destroyed) }
ltl reach_abort_halted_at_sender { [] !(T_OWNS && tdom == NoDomain && tjd == Aborted) }
ltl reach_in_doubt_without_domain { [] !(tst == T_InDoubt && tdom == NoDomain && rst == R_Settled) }
ltl reach_too_late_cancel { [] !(tst == T_InDoubt && cancelled && rst == R_Settled) }
ltl reach_stray_404_in_doubt { [] !(tst == T_InDoubt && rst == R_Settled && (answers & UNKNOWN)) }
#endif
