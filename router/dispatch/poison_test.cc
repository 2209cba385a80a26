#include "router/dispatch/poison.h"

#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

TEST(WorkerLosses, TheSecondOneAtOnePlaceIsTheRequestsDoing) {
  const struct {
    uint32_t tokens_between;
    bool is_second;
  } cases[] = {{0, true}, {WorkerLosses::kMostUnsent, true}, {WorkerLosses::kMostUnsent + 1, false}};
  for (const auto& c : cases) {
    WorkerLosses losses;
    for (int i = 0; i < 5; ++i) losses.OnToken();
    EXPECT_EQ(losses.OnLoss(true), WorkerLosses::Blame::kNone);
    for (uint32_t i = 0; i < c.tokens_between; ++i) losses.OnToken();
    EXPECT_EQ(losses.OnLoss(true) == WorkerLosses::Blame::kRequest, c.is_second) << c.tokens_between;
    EXPECT_EQ(losses.OnLoss(true), WorkerLosses::Blame::kRequest) << "the next one is at that place";
  }
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

TEST(Quarantine, FingerprintsAreOfTheTierAndAllTokens) {
  const std::vector<TokenId> prompt = {1, 2}, longer = {1, 2, 3};
  EXPECT_EQ(RequestFingerprint("base", "acme", prompt), RequestFingerprint("base", "acme", prompt));
  EXPECT_NE(RequestFingerprint("base", "acme", prompt), RequestFingerprint("nano", "acme", prompt));
  EXPECT_NE(RequestFingerprint("base", "acme", prompt), RequestFingerprint("base", "acme", longer));
  EXPECT_NE(RequestFingerprint("base", "acme", prompt), RequestFingerprint("base", "other", prompt));
}

// Four replicas of nano and of base.
class PoisonTest : public DispatcherTest {
 protected:
  PoisonTest() {
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
  double Events(const std::string& tier, const std::string& event) const {
    return Metric("terrace_poison_requests_total{event=\"" + event + "\",tier=\"" + tier + "\"}");
  }

  FakeCluster wide_{
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 4, 64}, {"small", 1, 64}, {"base", 4, 64}}}};
};

const Status kGone = Unavailable("ipv4:10.0.0.1:8101: Socket closed");

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

TEST_F(PoisonTest, AnAnswerThatGetsFurtherIsNotWhatTookItsWorkersDown) {
  Ask("base");
  const std::string piece(WorkerLosses::kMostUnsent + 1, 'x');
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
                           WithReason(Unavailable("quiet"), kSilentReason),
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
  EXPECT_EQ(Reason(End().status()), kPoisonReason) << "it got three tokens further";
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
