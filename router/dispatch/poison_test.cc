#include "router/dispatch/poison.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

const IsBack kNobodyIsBack = [](const std::string&) { return false; };

TEST(WorkerLosses, TheSecondOneAtOnePlaceIsTheRequestsDoingAndOneNearItMayBe) {
  const struct {
    uint32_t tokens_between;
    Blame blame;
  } cases[] = {{0, Blame::kRequest},
               {kUsuallyUnsent, Blame::kRequest},
               {kUsuallyUnsent + 1, Blame::kUnclear},
               {kMostUnsent, Blame::kUnclear},
               {kMostUnsent + 1, Blame::kNone}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.tokens_between);
    WorkerLosses losses;
    for (int i = 0; i < 5; ++i) losses.OnToken();
    EXPECT_EQ(losses.OnLoss({.had_begun = true}, kNobodyIsBack), Blame::kNone);
    for (uint32_t i = 0; i < c.tokens_between; ++i) losses.OnToken();
    EXPECT_EQ(losses.OnLoss({.had_begun = true}, kNobodyIsBack), c.blame);
    EXPECT_EQ(losses.OnLoss({.had_begun = true}, kNobodyIsBack), Blame::kRequest) << "it is at that place";
  }
}

TEST(WorkerLosses, WhereNeitherWorkerHadBegunOthersMayHaveBeenTheCause) {
  WorkerLosses losses;
  EXPECT_EQ(losses.OnLoss({}, kNobodyIsBack), Blame::kNone);
  EXPECT_EQ(losses.OnLoss({}, kNobodyIsBack), Blame::kUnclear);
  EXPECT_EQ(losses.OnLoss({.had_begun = true}, kNobodyIsBack), Blame::kRequest);
}

TEST(WorkerLosses, WhatHungTheFirstIsNotWhatTookOneThatHadNotBegun) {
  WorkerLosses losses;
  EXPECT_EQ(losses.OnLoss({.had_begun = true, .silent = "first"}, kNobodyIsBack), Blame::kNone);
  EXPECT_EQ(losses.OnLoss({}, kNobodyIsBack), Blame::kUnclear);
}

TEST(WorkerLosses, WhereverTheyAreAnAnswerLosesNoMoreThanSoMany) {
  WorkerLosses losses;
  for (uint32_t lost = 1; lost <= kMostLost; ++lost) {
    const Blame blame = losses.OnLoss({.had_begun = true}, kNobodyIsBack);
    EXPECT_EQ(blame, lost < kMostLost ? Blame::kNone : Blame::kUnclear) << lost;
    for (uint32_t i = 0; i <= kMostUnsent; ++i) losses.OnToken();
  }
}

TEST(WorkerLosses, AWorkerThatWasSilentAndIsBackHungInNothing) {
  for (const bool is_back : {true, false}) {
    WorkerLosses losses;
    EXPECT_EQ(losses.OnLoss({.had_begun = true, .silent = "first"}, kNobodyIsBack), Blame::kNone);
    const IsBack first_is_back = [&](const std::string& process) { return is_back && process == "first"; };
    EXPECT_EQ(losses.OnLoss({.had_begun = true, .silent = "second"}, first_is_back),
              is_back ? Blame::kNone : Blame::kRequest);
  }
  WorkerLosses losses;
  const IsBack everybody_is_back = [](const std::string&) { return true; };
  for (uint32_t i = 0; i < 2 * kMostLost; ++i)
    EXPECT_EQ(losses.OnLoss({.had_begun = true, .silent = "it"}, everybody_is_back), Blame::kNone) << i;
}

TEST(Quarantine, EntriesExpireAndTheOldestGiveWay) {
  FakeClock clock;
  Quarantine quarantine(clock);
  const auto name = [](int32_t token) {
    return RequestFingerprint("base", "acme", std::vector<TokenId>{token});
  };
  EXPECT_TRUE(quarantine.is_empty());
  quarantine.Add(name(0));
  clock.Advance(Quarantine::kTime - Duration(1));
  quarantine.Add(name(1));
  EXPECT_TRUE(quarantine.Has(name(0)));
  clock.Advance(Duration(1));
  EXPECT_FALSE(quarantine.Has(name(0)));
  EXPECT_TRUE(quarantine.Has(name(1)));
  quarantine.Add(name(1));  // again: it is kept once, and for longer
  for (int32_t token = 2; token <= static_cast<int32_t>(Quarantine::kMost); ++token)
    quarantine.Add(name(token));
  EXPECT_TRUE(quarantine.Has(name(1)));
  quarantine.Add(name(0));
  EXPECT_FALSE(quarantine.Has(name(1)));
  clock.Advance(Quarantine::kTime);
  EXPECT_FALSE(quarantine.Has(name(2)));
  EXPECT_TRUE(quarantine.is_empty());
}

const Hash128 kRequest = {.low = 1}, kOther = {.low = 2};

WorkerDeath DeathAfter(size_t tokens, uint64_t boarded, bool had_begun = true) {
  WorkerDeath death{.boarded = boarded, .had_begun = had_begun};
  death.SetPlace(tokens, 0);
  return death;
}

TEST(Quarantine, TheSecondDeathUnderARequestAtOnePlaceIsItsDoingAndOneNearItMayBe) {
  const size_t far = 100;
  const struct {
    const char* name;
    WorkerDeath first, second;
    Blame blame;
  } cases[] = {
      {"at the same token", DeathAfter(far, 0), DeathAfter(far, 1), Blame::kRequest},
      {"as far on as is usual", DeathAfter(far, 0), DeathAfter(far + kUsuallyUnsent, 1), Blame::kRequest},
      {"a few further on", DeathAfter(far, 0), DeathAfter(far + kUsuallyUnsent + 1, 1), Blame::kUnclear},
      {"as far as may be", DeathAfter(far, 0), DeathAfter(far + kMostUnsent, 1), Blame::kUnclear},
      {"further than a worker computes unseen", DeathAfter(far, 0), DeathAfter(far + kMostUnsent + 1, 1),
       Blame::kNone},
      {"a few before", DeathAfter(far, 0), DeathAfter(far - kMostUnsent, 1), Blame::kUnclear},
      {"long before", DeathAfter(far, 0), DeathAfter(far - kMostUnsent - 1, 1), Blame::kNone},
      {"of an attempt that ran already at the first one", DeathAfter(far, 0), DeathAfter(far, 0),
       Blame::kNone},
      {"where the first worker had not begun", DeathAfter(0, 0, false), DeathAfter(0, 1), Blame::kRequest},
      {"where the second had not", DeathAfter(0, 0), DeathAfter(0, 1, false), Blame::kRequest},
      {"where neither had", DeathAfter(0, 0, false), DeathAfter(0, 1, false), Blame::kNone},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    FakeClock clock;
    Quarantine quarantine(clock);
    EXPECT_EQ(quarantine.OnDeath(kRequest, c.first, kNobodyIsBack), Blame::kNone);
    EXPECT_EQ(quarantine.deaths(), 1u);
    EXPECT_TRUE(quarantine.IsSuspect(kRequest));
    EXPECT_EQ(quarantine.OnDeath(kRequest, c.second, kNobodyIsBack), c.blame);
    EXPECT_EQ(quarantine.Has(kRequest), c.blame == Blame::kRequest);
    EXPECT_EQ(quarantine.IsSuspect(kRequest), c.blame != Blame::kRequest);
    EXPECT_FALSE(quarantine.IsSuspect(kOther));
  }
}

TEST(Quarantine, TheThirdDeathNearOnePlaceLeavesNoDoubt) {
  FakeClock clock;
  Quarantine quarantine(clock);
  EXPECT_EQ(quarantine.OnDeath(kRequest, DeathAfter(10, 0), kNobodyIsBack), Blame::kNone);
  EXPECT_EQ(quarantine.OnDeath(kRequest, DeathAfter(18, 1), kNobodyIsBack), Blame::kUnclear);
  EXPECT_EQ(quarantine.OnDeath(kRequest, DeathAfter(18, 1), kNobodyIsBack), Blame::kNone) << "beside that";
  EXPECT_FALSE(quarantine.Has(kRequest));
  EXPECT_EQ(quarantine.OnDeath(kRequest, DeathAfter(10, 3), kNobodyIsBack), Blame::kRequest);
  EXPECT_TRUE(quarantine.Has(kRequest));
}

TEST(Quarantine, ASilentWorkerThatIsBackHungInNothing) {
  for (const bool is_back : {true, false}) {
    FakeClock clock;
    Quarantine quarantine(clock);
    WorkerDeath first = DeathAfter(0, 0), second = DeathAfter(0, 1);
    first.silent = "first";
    second.silent = "second";
    const IsBack first_is_back = [&](const std::string& process) { return is_back && process == "first"; };
    EXPECT_EQ(quarantine.OnDeath(kRequest, first, first_is_back), Blame::kNone);
    EXPECT_EQ(quarantine.OnDeath(kRequest, second, first_is_back), is_back ? Blame::kNone : Blame::kRequest);
    EXPECT_EQ(quarantine.IsSuspect(kRequest), is_back) << "of the second";
  }
}

TEST(Quarantine, WhatHungTheFirstIsNotWhatTookOneThatHadNotBegun) {
  FakeClock clock;
  Quarantine quarantine(clock);
  WorkerDeath first = DeathAfter(0, 0);
  first.silent = "first";
  EXPECT_EQ(quarantine.OnDeath(kRequest, first, kNobodyIsBack), Blame::kNone);
  EXPECT_EQ(quarantine.OnDeath(kRequest, DeathAfter(0, 1, false), kNobodyIsBack), Blame::kNone);
  EXPECT_FALSE(quarantine.Has(kRequest));
}

TEST(Quarantine, ADraftsTokensAreComputedAtOnceSoADeathMayBeAtAnyOfThem) {
  FakeClock clock;
  Quarantine quarantine(clock);
  WorkerDeath drafted{.had_begun = true};
  drafted.SetPlace(/*come=*/0, /*drafted=*/50);
  EXPECT_EQ(quarantine.OnDeath(kRequest, drafted, kNobodyIsBack), Blame::kNone);
  EXPECT_EQ(quarantine.OnDeath(kRequest, DeathAfter(50, 1), kNobodyIsBack), Blame::kRequest);
}

TEST(Quarantine, ASuspectIsOneUntilItGetsFurtherOrIsAnsweredOrForSomeTime) {
  FakeClock clock;
  Quarantine quarantine(clock);
  quarantine.OnDeath(kRequest, DeathAfter(3, 0), kNobodyIsBack);
  auto trial = quarantine.Board(kRequest, /*is_prime=*/false, /*replica=*/7);
  trial.OnTokens(3 + kMostUnsent);
  EXPECT_TRUE(quarantine.IsSuspect(kRequest));
  trial.OnTokens(3 + kMostUnsent + 1);
  EXPECT_FALSE(quarantine.IsSuspect(kRequest));
  EXPECT_TRUE(quarantine.OthersThan(kOther).suspects.empty());

  quarantine.OnDeath(kRequest, DeathAfter(0, 0), kNobodyIsBack);
  trial = quarantine.Board(kRequest, true, 7);
  trial.End();
  EXPECT_TRUE(quarantine.IsSuspect(kRequest)) << "an attempt that ended without an answer shows nothing";
  trial = quarantine.Board(kRequest, true, 7);
  trial.OnAnswered();
  EXPECT_TRUE(quarantine.is_empty());

  quarantine.OnDeath(kRequest, DeathAfter(0, 0), kNobodyIsBack);
  clock.Advance(Quarantine::kTime - Duration(1));
  EXPECT_TRUE(quarantine.IsSuspect(kRequest));
  clock.Advance(Duration(1));
  EXPECT_FALSE(quarantine.IsSuspect(kRequest));
  EXPECT_TRUE(quarantine.is_empty());
}

TEST(Quarantine, AnAttemptIsNoWitnessOfADeathThatCameAfterIt) {
  FakeClock clock;
  Quarantine quarantine(clock);
  quarantine.OnDeath(kRequest, DeathAfter(0, 0), kNobodyIsBack);
  auto trial = quarantine.Board(kRequest, true, 7);
  quarantine.OnDeath(kRequest, DeathAfter(90, 1), kNobodyIsBack);  // another answer to it
  trial.OnAnswered();
  EXPECT_TRUE(quarantine.IsSuspect(kRequest));
}

TEST(Quarantine, ASuspectSeesWhereOthersRunAndWhereItIsTriedItself) {
  FakeClock clock;
  Quarantine quarantine(clock);
  quarantine.OnDeath(kRequest, DeathAfter(0, 0), kNobodyIsBack);
  quarantine.OnDeath(kOther, DeathAfter(9, 0), kNobodyIsBack);
  const auto prime = quarantine.Board(kRequest, true, 7), other = quarantine.Board(kOther, false, 8);
  const auto none = quarantine.Board({.low = 3}, false, 9);  // no suspect
  const Quarantine::Others of_request = quarantine.OthersThan(kRequest);
  EXPECT_EQ(of_request.suspects, std::set<ReplicaId>{8});
  EXPECT_TRUE(of_request.primes.empty());
  EXPECT_EQ(of_request.own, std::set<ReplicaId>{7});
  const Quarantine::Others of_other = quarantine.OthersThan(kOther);
  EXPECT_EQ(of_other.suspects, std::set<ReplicaId>{7});
  EXPECT_EQ(of_other.primes, std::set<ReplicaId>{7});
  EXPECT_TRUE(of_other.own.empty());
}

TEST(Quarantine, FingerprintsAreOfTheModelTheTenantAndAllTokens) {
  const std::vector<TokenId> prompt = {1, 2}, longer = {1, 2, 3};
  EXPECT_EQ(RequestFingerprint("base", "acme", prompt), RequestFingerprint("base", "acme", prompt));
  EXPECT_NE(RequestFingerprint("base", "acme", prompt), RequestFingerprint("nano", "acme", prompt));
  EXPECT_NE(RequestFingerprint("base", "acme", prompt), RequestFingerprint("base", "acme", longer));
  EXPECT_NE(RequestFingerprint("base", "acme", prompt), RequestFingerprint("base", "other", prompt));
}

const Status kGone = Unavailable("ipv4:10.0.0.1:8101: Socket closed");
const Status kQuiet = WithReason(Unavailable("no update for 3 s"), kSilentReason);

// Four replicas of nano and of base.
class PoisonTest : public DispatcherTest {
 protected:
  PoisonTest() {
    for (const size_t tier : {kNano, kSmall, kBase}) {
      for (ReplicaView& replica : wide_.tier(tier).replicas) replica.description.instance = replica.address;
    }
    dispatcher_ = MakeDispatcher({wide_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }

  void Ask(const std::string& model, const std::string& prompt = "abcd") {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields(model, prompt));
  }
  size_t Calls(size_t tier) {
    size_t calls = 0;
    for (size_t i = 0; i < wide_.tier(tier).replicas.size(); ++i)
      calls += wide_.replica(tier, i).calls.size();
    return calls;
  }
  // A worker that had begun with its calls, of which this is the last one, says nothing any more.
  void Hang(size_t tier, size_t replica) {
    FakeCall& call = wide_.call(tier, replica);
    call.Start(0);
    wide_.tier(tier).replicas[replica].state = ReplicaState::kSilent;
    call.Fail(kQuiet);
  }
  double Events(const std::string& tier, const std::string& event) const {
    return Metric("terrace_poison_requests_total{event=\"" + event + "\",tier=\"" + tier + "\"}");
  }

  FakeCluster wide_{
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 4, 64}, {"small", 1, 64}, {"base", 4, 64}}}};
};

// The worker of a call that it had begun with.
void Lose(FakeCall& call) {
  call.Start(0);
  call.Fail(kGone);
}

TEST_F(PoisonTest, ARequestThatTookTwoWorkersDownIsTriedOnNoThirdOneAndRefusedWhenItComesAgain) {
  Ask("base");
  Lose(wide_.call(kBase, 0));
  EXPECT_FALSE(sink_->end.has_value());
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(End().status().code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_THAT(Message(End().status()), ::testing::HasSubstr("quarantine"));
  EXPECT_EQ(Calls(kBase), 2u);
  Ask("base");
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kBase), 2u);
  Ask("base", "abce");
  wide_.call(kBase, 0).Answer("another");
  EXPECT_TRUE(End().ok());
  Ask("nano");
  wide_.call(kNano, 0).Answer("another tier");
  EXPECT_TRUE(End().ok());
  EXPECT_EQ(Events("base", "quarantined"), 1);
  EXPECT_EQ(Events("base", "refused"), 1);
  clock_.Advance(Quarantine::kTime);
  Ask("base");
  wide_.call(kBase, 0).Answer("again");
  EXPECT_TRUE(End().ok());
}

TEST_F(PoisonTest, SoIsAnAnswerInTheMiddleThatGetsNoFurther) {
  Ask("base");
  wide_.call(kBase, 0).SendText("some text");
  Lose(wide_.call(kBase, 0));
  wide_.call(kBase, 1).SendText("s");  // what the first one had not sent any more
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(sink_->text, "some texts");
  EXPECT_EQ(Calls(kBase), 2u);
}

// What the first worker may or may not have had unsent: nobody knows whether it killed both.
TEST_F(PoisonTest, WhoLosesTwoWorkersAFewTokensApartIsTriedOnNoThirdOneButMayComeAgain) {
  Ask("base");
  wide_.call(kBase, 0).SendText("ten tokens");
  Lose(wide_.call(kBase, 0));
  wide_.call(kBase, 1).SendText("8 more..");
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  EXPECT_EQ(sink_->text, "ten tokens8 more..");
  EXPECT_EQ(Calls(kBase), 2u);
  EXPECT_EQ(Events("base", "quarantined"), 0);
  Ask("base");
  wide_.call(kBase, 0).Answer("ten tokens8 more..and so on");
  EXPECT_TRUE(End().ok()) << End().status();

  Ask("base");  // it was innocent of both
  wide_.call(kBase, 0).SendText("ten tokens");
  Lose(wide_.call(kBase, 0));
  wide_.call(kBase, 1).Answer("8 more..");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(PoisonTest, WhoComesAgainAfterThatAndLosesAnotherThereIsQuarantined) {
  Ask("base");
  wide_.call(kBase, 0).SendText("ten tokens");
  Lose(wide_.call(kBase, 0));
  wide_.call(kBase, 1).SendText("8 more..");
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  Ask("base");
  wide_.call(kBase, 0).SendText("ten tokens8 more..");
  Lose(wide_.call(kBase, 0));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Events("base", "quarantined"), 1);
}

TEST_F(PoisonTest, HoweverFarItGetsEachTimeAnAnswerLosesNoMoreThanSoManyWorkers) {
  wide_.tier(kBase).context_length = 4 + kMostLost * (kMostUnsent + 1) + 1;
  Ask("base");
  for (uint32_t i = 0; i < kMostLost; ++i) {
    ASSERT_FALSE(sink_->end.has_value()) << i;
    wide_.call(kBase, i % 2).SendText(std::string(kMostUnsent + 1, 'x'));
    Lose(wide_.call(kBase, i % 2));
  }
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  EXPECT_EQ(Calls(kBase), kMostLost);
  EXPECT_EQ(Events("base", "quarantined"), 0);
}

// No sign of life from a worker that had begun with the request: it may hang in it.
TEST_F(PoisonTest, WhatHangsItsWorkersIsQuarantinedAsWhatKillsThem) {
  for (const bool has_begun : {true, false}) {  // the answer
    SCOPED_TRACE(has_begun);
    const std::string prompt = has_begun ? "late" : "soon";
    const size_t before = Calls(kBase);
    Ask("base", prompt);
    if (has_begun) wide_.call(kBase, 0).SendText("some text");
    Hang(kBase, 0);
    EXPECT_FALSE(sink_->end.has_value());
    Hang(kBase, 1);
    EXPECT_EQ(Reason(End().status()), kPoisonReason);
    EXPECT_EQ(Calls(kBase), before + 2);
    Ask("base", prompt);
    EXPECT_EQ(Reason(End().status()), kPoisonReason);
    EXPECT_EQ(Calls(kBase), before + 2);
    for (ReplicaView& replica : wide_.tier(kBase).replicas) replica.state = ReplicaState::kReady;
  }
}

TEST_F(PoisonTest, OneThatIsKilledAndOneThatHangsAreTwo) {
  Ask("base");
  Lose(wide_.call(kBase, 0));
  Hang(kBase, 1);
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
}

// The calls of the first worker go on at one that the router does not know yet to be cut off too.
TEST_F(PoisonTest, ANetworkThatIsCutBlamesNobody) {
  Ask("base");
  wide_.call(kBase, 0).SendText("some text");
  Hang(kBase, 0);
  for (const size_t i : {1, 2}) {
    wide_.tier(kBase).replicas[i].state = ReplicaState::kSilent;
    wide_.call(kBase, i).Fail(kQuiet);  // it never began
  }
  EXPECT_FALSE(sink_->end.has_value());
  wide_.call(kBase, 3).Answer(" to its end");
  EXPECT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, "some text to its end");
}

TEST_F(PoisonTest, AWorkerThatIsBackWasNotTakenDown) {
  Ask("base");
  Hang(kBase, 0);
  wide_.tier(kBase).replicas[0].state = ReplicaState::kReady;
  Hang(kBase, 1);
  EXPECT_FALSE(sink_->end.has_value());
  wide_.call(kBase, 2).Answer("ok");
  EXPECT_TRUE(End().ok()) << End().status();

  Ask("base", "abce");
  Hang(kBase, 0);
  wide_.tier(kBase).replicas[0].description.instance = "another process at its address";
  wide_.tier(kBase).replicas[0].state = ReplicaState::kReady;
  Hang(kBase, 2);
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
}

TEST_F(PoisonTest, AReloadForgetsNobody) {
  const auto quarantine = std::make_shared<Quarantine>(clock_);
  const auto reload = [&] {
    dispatcher_ =
        MakeDispatcher({wide_, *catalog_, balancer_, admission_, recorder_, clock_, 7, {}, quarantine});
  };
  reload();
  Ask("base");
  Lose(wide_.call(kBase, 0));
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  reload();
  Ask("base");
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kBase), 2u);
  // A suspect is one still.
  const auto cancel = [&] {
    sink_ = std::make_shared<FakeSink>();
    return Generate(Fields("base", std::string("abce")));
  }();
  Lose(wide_.call(kBase, 0));
  cancel();
  wide_.call(kBase, 1).Fail(Cancelled("by us"));
  reload();
  Ask("base", "abce");
  Lose(wide_.call(kBase, 0));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
}

TEST_F(PoisonTest, AnotherTierOfTheSameModelRefusesItToo) {
  wide_.tier(kNano).model_digest = wide_.tier(kBase).model_digest;
  Ask("base");
  Lose(wide_.call(kBase, 0));
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  Ask("nano");
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kNano), 0u);
}

TEST_F(PoisonTest, AnAnswerThatGetsFurtherIsNotWhatTookItsWorkersDown) {
  Ask("base");
  const std::string piece(kMostUnsent + 1, 'x');
  Lose(wide_.call(kBase, 0));
  wide_.call(kBase, 1).SendText(piece);
  Lose(wide_.call(kBase, 1));
  wide_.call(kBase, 0).SendText(piece);
  Lose(wide_.call(kBase, 0));
  wide_.call(kBase, 1).Answer("end");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, piece + piece + "end");
}

TEST_F(PoisonTest, ADeviceThatIsLostIsAWorkerThatDiedThoughItDrains) {
  const Status lost = WithReason(Unavailable("the worker has lost its device"), kDeviceLostReason);
  Ask("base");
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(sink_->end.has_value());
    wide_.call(kBase, i).Start(0);
    wide_.tier(kBase).replicas[i].is_leaving = true;
    wide_.call(kBase, i).Fail(lost);
  }
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kBase), 2u);
}

TEST_F(PoisonTest, OnlyWorkersThatDieCount) {
  const Status others[] = {WithReason(Unavailable("stopping"), "draining"),
                           WithReason(Unavailable("another"), "wrong_instance"),
                           WithReason(Unavailable("no connection"), kUnreachedReason),
                           WithReason(ResourceExhausted("full"), "overloaded"),
                           Cancelled("going down"),
                           Internal("bug")};
  for (const Status& other : others) {
    clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
    Ask("base");
    Lose(wide_.call(kBase, 0));
    wide_.call(kBase, 1).Fail(other);
    wide_.call(kBase, 2).Answer("ok");
    EXPECT_TRUE(End().ok()) << other << ": " << End().status();
  }
  clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
  Ask("base");
  Lose(wide_.call(kBase, 0));
  wide_.tier(kBase).replicas[1].is_leaving = true;
  Lose(wide_.call(kBase, 1));  // it was to go anyway
  wide_.call(kBase, 2).Answer("ok");
  EXPECT_TRUE(End().ok()) << End().status();
}

// Others may have run there, or a network may be gone: it ends, as no third worker must be lost, and may come
// again.
TEST_F(PoisonTest, ARequestThatNoLostWorkerHadBegunWithIsNotQuarantined) {
  Ask("base");
  wide_.call(kBase, 0).Fail(kGone);
  wide_.call(kBase, 1).Fail(kGone);
  EXPECT_EQ(Reason(End().status()), "worker_lost");
  EXPECT_EQ(Calls(kBase), 2u);
  clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
  Ask("base");
  wide_.call(kBase, 0).Answer("ok");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(PoisonTest, ThreeWorkersAreLostByNoRequestAlsoOverSeveralTiers) {
  Ask("auto");
  Lose(wide_.call(kNano, 0));
  Lose(wide_.call(kNano, 1));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kSmall), 0u);
  Ask("auto");
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kNano), 2u);

  Ask("auto", "abce");
  Lose(wide_.call(kNano, 0));
  wide_.call(kNano, 1).Answer("hm", kUnsure);
  Lose(wide_.call(kSmall, 0));
  EXPECT_EQ(Reason(End().status()), "worker_lost") << "it got three tokens further";
}

TEST_F(PoisonTest, OneThatOthersFoundOutIsNotTriedFurtherEither) {
  Ask("base");
  const auto first = sink_;
  Ask("base");
  const auto first_calls = wide_.replica(kBase, 0).calls;  // of both
  Lose(*first_calls[0]);
  Lose(wide_.call(kBase, 1));
  EXPECT_EQ(Reason(first->end->status()), kPoisonReason);
  first_calls[1]->Fail(WithReason(Unavailable("stopping"), "draining"));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
}

// Three replicas die in turn; what ran there is answered by the others.
TEST_F(PoisonTest, WhatRanBesideAPromptThatKillsIsAnsweredElsewhere) {
  for (const bool is_first : {true, false}) {  // of those that hear of the death
    SCOPED_TRACE(is_first);
    const size_t before = Calls(kBase);
    Ask("base", is_first ? "kill" : "murder");
    const auto poison = sink_;
    Ask("base", "it waits");
    const auto waits = sink_;
    Ask("base", "it runs");
    const auto& at_first = wide_.replica(kBase, 0).calls;
    const std::vector<std::shared_ptr<FakeCall>> calls(at_first.end() - 3, at_first.end());
    calls[0]->Start(0);  // of the second one its worker has not said that it had begun
    calls[2]->SendText("ab");
    const std::vector<size_t> order = is_first ? std::vector<size_t>{0, 1, 2} : std::vector<size_t>{2, 1, 0};
    for (const size_t i : order) calls[i]->Fail(kGone);
    EXPECT_EQ(Calls(kBase), before + 6);
    std::vector<size_t> at(3);  // where each of them is now
    for (size_t i = 0; i < 3; ++i) at[order[i]] = i + 1;
    Lose(wide_.call(kBase, at[0]));
    ASSERT_TRUE(poison->end.has_value());
    EXPECT_EQ(Reason(poison->end->status()), kPoisonReason);
    EXPECT_FALSE(waits->end.has_value() || sink_->end.has_value());
    wide_.call(kBase, at[1]).Answer("x");
    wide_.call(kBase, at[2]).Answer("c");
    ASSERT_TRUE(waits->end.has_value() && waits->end->ok());
    ASSERT_TRUE(End().ok()) << End().status();
    EXPECT_EQ(sink_->text, "abc");
    EXPECT_EQ(Calls(kBase), before + 6);
    EXPECT_EQ(Events("base", "quarantined"), is_first ? 1 : 2);
    clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
  }
}

// Two replicas, of which the first one dies.
class FewWorkersTest : public PoisonTest {
 protected:
  FewWorkersTest() {
    dispatcher_ = MakeDispatcher({cluster_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }
  // Both requests are at the first one when it dies, and are prime suspects.
  void LoseTwo() {
    Ask("base", "first");
    first_ = sink_;
    Ask("base", "second");
    const auto calls = cluster_.replica(kBase, 0).calls;
    for (const auto& call : calls) call->Start(0);
    cluster_.tier(kBase).replicas[0].state = ReplicaState::kConnecting;
    for (const auto& call : calls) call->Fail(kGone);
    ASSERT_EQ(AtSecond(), 1u) << "one of them is tried";
  }
  size_t AtSecond() { return cluster_.replica(kBase, 1).calls.size(); }

  std::shared_ptr<FakeSink> first_;
};

TEST_F(FewWorkersTest, ASuspectWaitsUntilTheOtherHasKilledItsWorker) {
  LoseTwo();
  dispatcher_->Housekeep();
  EXPECT_EQ(AtSecond(), 1u);
  cluster_.tier(kBase).replicas[1].state = ReplicaState::kConnecting;
  Lose(cluster_.call(kBase, 1));
  EXPECT_EQ(Reason(first_->end->status()), kPoisonReason);
  dispatcher_->Housekeep();
  EXPECT_EQ(Reason(End().status()), "worker_lost") << "nobody is there, and nothing was shown";
  Ask("base", "second");
  cluster_.tier(kBase).replicas[0].state = ReplicaState::kReady;
  EXPECT_EQ(Reason(End().status()), "no_capacity");
  Ask("base", "second");
  cluster_.call(kBase, 0).Answer("it was not to blame");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(FewWorkersTest, ASuspectWaitsUntilTheOtherHasGotFurther) {
  LoseTwo();
  cluster_.call(kBase, 1).SendText(std::string(kMostUnsent, 'x'));
  dispatcher_->Housekeep();
  EXPECT_EQ(AtSecond(), 1u);
  cluster_.call(kBase, 1).SendText("x");
  dispatcher_->Housekeep();
  ASSERT_EQ(AtSecond(), 2u);
  cluster_.replica(kBase, 1).calls[1]->Answer("two");
  cluster_.replica(kBase, 1).calls[0]->Answer("one");
  EXPECT_TRUE(first_->end->ok() && End().ok());
}

TEST_F(FewWorkersTest, AClientMayLeaveWhileItsSuspectWaits) {
  LoseTwo();
  sink_->closed = true;
  dispatcher_->Housekeep();
  ASSERT_TRUE(sink_->end.has_value());
  EXPECT_EQ(Reason(sink_->end->status()), "client_closed");
  cluster_.call(kBase, 1).Answer("one");
}

TEST_F(FewWorkersTest, ASuspectGoesAnywayWhenItHasWaitedForLongButNoThirdWorkerDies) {
  LoseTwo();
  clock_.Advance(RetryOptions().resume_patience - Duration(1));
  dispatcher_->Housekeep();
  EXPECT_EQ(AtSecond(), 1u);
  clock_.Advance(Duration(1));
  dispatcher_->Housekeep();
  ASSERT_EQ(AtSecond(), 2u);
  const auto calls = cluster_.replica(kBase, 1).calls;
  for (const auto& call : calls) call->Start(0);
  for (const auto& call : calls) call->Fail(kGone);
  EXPECT_EQ(Reason(first_->end->status()), kPoisonReason);
  EXPECT_EQ(Reason(End().status()), kPoisonReason) << "who of the two did it nobody knows";
}

TEST_F(FewWorkersTest, AnAnswerThatHadBegunWaitsForAPrimeSuspectForASecond) {
  Ask("base", "first");
  first_ = sink_;
  Ask("base", "begun");
  const auto calls = cluster_.replica(kBase, 0).calls;
  calls[0]->Start(0);
  calls[1]->SendText("ab");
  cluster_.tier(kBase).replicas[0].state = ReplicaState::kConnecting;
  for (const auto& call : calls) call->Fail(kGone);
  ASSERT_EQ(AtSecond(), 1u);
  clock_.Advance(std::chrono::seconds(1) - Duration(1));
  dispatcher_->Housekeep();
  EXPECT_EQ(AtSecond(), 1u);
  clock_.Advance(Duration(1));
  dispatcher_->Housekeep();
  ASSERT_EQ(AtSecond(), 2u);
  cluster_.replica(kBase, 1).calls[1]->Answer("c");
  EXPECT_EQ(sink_->text, "abc");
  cluster_.replica(kBase, 1).calls[0]->Answer("one");
  EXPECT_TRUE(first_->end->ok());
}

TEST_F(FewWorkersTest, ScoresWaitToo) {
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  std::optional<StatusOr<ScoreAnswer>> scored;
  Ask("base", "first");
  dispatcher_->Score(*Request::Make(fields),
                     [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); });
  const auto calls = cluster_.replica(kBase, 0).calls;
  for (const auto& call : calls) call->Start(0);
  for (const auto& call : calls) call->Fail(kGone);
  ASSERT_EQ(AtSecond(), 1u);
  dispatcher_->Housekeep();
  EXPECT_FALSE(scored.has_value());
  cluster_.call(kBase, 1).Answer("ok");
  dispatcher_->Housekeep();
  ASSERT_EQ(AtSecond(), 2u);
  FakeCall& call = cluster_.call(kBase, 1);
  call.events->OnPromptScores({{.token = 'b', .logprob = -1}, {.token = 'c', .logprob = -1}});
  call.Finish(AnswerEnd::kLength);
  ASSERT_TRUE(scored.has_value());
  EXPECT_TRUE(scored->ok()) << scored->status();
}

TEST_F(PoisonTest, TheAnswersToOneRequestAreOneSuspect) {
  sink_ = std::make_shared<FakeSink>();
  RequestFields fields = Fields("base");
  fields.choices = 2;
  Generate(std::move(fields));
  for (const size_t replica : {0, 1}) {
    const auto calls = wide_.replica(kBase, replica).calls;
    ASSERT_EQ(calls.size(), 2u) << "they are together";
    for (const auto& call : calls) call->Start(0);
    for (const auto& call : calls) call->Fail(kGone);
  }
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kBase), 4u);
}

TEST_F(PoisonTest, AWorkerThatWasLostUnderAnEarlierRequestForTheSameCounts) {
  const auto cancel = [&] {
    sink_ = std::make_shared<FakeSink>();
    return Generate(Fields("base"));
  }();
  Lose(wide_.call(kBase, 0));
  cancel();
  wide_.call(kBase, 1).Fail(Cancelled("by us"));
  EXPECT_EQ(Reason(End().status()), "client_closed");
  Ask("base");
  Lose(wide_.call(kBase, 0));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
}

// One prompt of several kills whatever begins with it, the workers' steps come in any order.
TEST_F(PoisonTest, NoThirdWorkerDiesAndNobodyElseIsBlamedInAnyOrder) {
  constexpr size_t kRequests = 10;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    uint64_t drawn = 0;
    const auto draw = [&](size_t below) { return static_cast<size_t>(RandomBits(seed, drawn++) % below); };
    const size_t replicas = 3 + draw(4);
    AdmissionBook book(ledger_, clock_);
    Admission admission({}, std::vector<std::string>{"nano", "small", "base"}, book);
    const auto balancer = MakeBalancer(BalancePolicy::kRoundRobin);
    FakeCluster fleet(
        std::array<FakeCluster::TierSpec, 3>{{{"nano", 1, 64}, {"small", 1, 64}, {"base", replicas, 64}}});
    dispatcher_ =
        MakeDispatcher({fleet, *catalog_, *balancer, admission, recorder_, clock_, 7, {.ratio = 10}});
    std::vector<std::shared_ptr<FakeSink>> sinks;
    std::vector<std::string> texts;  // of the answers; the first request kills
    for (size_t i = 0; i < kRequests; ++i) {
      texts.emplace_back(1 + draw(40), static_cast<char>('a' + i));
      sink_ = std::make_shared<FakeSink>();
      sinks.push_back(sink_);
      Generate(Fields("base", std::string(1, static_cast<char>('a' + i))));
    }
    const auto running = [&](size_t replica) {
      std::vector<std::shared_ptr<FakeCall>> out;
      for (const auto& call : fleet.replica(kBase, replica).calls) {
        if (!call->is_done) out.push_back(call);
      }
      return out;
    };
    size_t deaths = 0;
    const auto kill = [&](size_t replica) {
      ++deaths;
      fleet.tier(kBase).replicas[replica].state = ReplicaState::kConnecting;
      auto lost = running(replica);
      while (!lost.empty()) {
        std::swap(lost[draw(lost.size())], lost.back());
        lost.back()->Fail(kGone);
        lost.pop_back();
      }
    };
    std::set<const FakeCall*> begun;
    const auto is_over = [](const std::shared_ptr<FakeSink>& sink) { return sink->end.has_value(); };
    for (size_t step = 0; step < 20'000 && !std::ranges::all_of(sinks, is_over); ++step) {
      clock_.Advance(std::chrono::microseconds(10));
      dispatcher_->Housekeep();
      const size_t replica = draw(replicas);
      const auto calls = running(replica);
      if (calls.empty()) continue;
      FakeCall& call = *calls[draw(calls.size())];
      const auto number = static_cast<size_t>(call.spec.prompt->front() - 'a');
      const size_t said = call.spec.resume.size() + call.tokens;
      if (begun.insert(&call).second) {
        call.Start(0);
        if (number == 0) kill(replica);
      } else if (said < texts[number].size()) {
        call.SendText(texts[number].substr(said, 1));
      } else {
        call.Answer("");
      }
    }
    EXPECT_EQ(deaths, 2u);
    for (size_t i = 0; i < kRequests; ++i) {
      SCOPED_TRACE(i);
      EXPECT_TRUE(is_over(sinks[i]));
      if (!is_over(sinks[i])) continue;
      EXPECT_EQ(Reason(sinks[i]->end->status()), i == 0 ? kPoisonReason : "");
      if (i == 0) continue;
      EXPECT_EQ(sinks[i]->text, texts[i]);
    }
    dispatcher_ = nullptr;
  }
}

TEST_F(PoisonTest, ScoresToo) {
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  for (int i = 0; i < 2; ++i) {
    std::optional<StatusOr<ScoreAnswer>> scored;
    dispatcher_->Score(*Request::Make(fields),
                       [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); });
    if (i == 0) Lose(wide_.call(kBase, 0));
    if (i == 0) Lose(wide_.call(kBase, 1));
    ASSERT_TRUE(scored.has_value());
    EXPECT_EQ(Reason(scored->status()), kPoisonReason);
    EXPECT_EQ(Calls(kBase), 2u);
  }
}

}  // namespace
}  // namespace terrace
