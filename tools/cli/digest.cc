#include "tools/cli/digest.h"

#include <filesystem>
#include <functional>
#include <system_error>

#include "tools/cli/format.h"
#include "tools/cli/new_file.h"
#include "tools/cli/verdict.h"
#include "worker/formats/digest_list.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

using IsCancelled = std::function<bool()>;

void Show(const ModelFiles& model, const std::string& list, const char* state,
          const CommandContext& context) {
  uint64_t pieces = 0;
  for (const DigestList::File& file : model.digest_list.files) pieces += file.pieces.size();
  context.out << "digest  " << model.digest.Hex() << "\nfiles   "
              << FormatCount(model.digest_list.files.size()) << " of "
              << FormatBytes(model.digest_list.bytes()) << " (" << model.digest_list.bytes() << " bytes) in "
              << FormatCount(pieces, "piece") << "\nlist    " << list << ": " << state << "\n";
}

Status Write(const std::string& model, const std::string& list, const IsCancelled& is_cancelled,
             const CommandContext& context) {
  std::error_code ignored;
  if (std::filesystem::exists(model, ignored))
    RETURN_IF_ERROR(CheckCanReplace(list));  // else it has no folder
  ASSIGN_OR_RETURN(const ModelFiles opened, OpenModel(model, {.is_cancelled = is_cancelled}));
  RETURN_IF_ERROR(ReplaceFile(list, DigestListText(opened.digest_list)));
  Show(opened, list, "written", context);
  return {};
}

// A refusal is an answer; that a model or its list cannot be opened is an error.
Status AsAnswer(const Status& status) {
  return Reason(status) == kDigestDiffersReason ? AnswerIsNo(Message(status)) : status;
}

Status Check(const std::string& model, const std::string& list, const IsCancelled& is_cancelled,
             const CommandContext& context) {
  RETURN_IF_ERROR(ReadDigestList(list).status());  // without one all would be read, and compared with nothing
  const auto opened = OpenModel(model, {.use_digest_list = true, .is_cancelled = is_cancelled});
  RETURN_IF_ERROR(AsAnswer(opened.status()));
  const ListedFiles listed = opened->listed();
  RETURN_IF_ERROR(AsAnswer(VerifyPieces(listed, WholeFiles(listed.files), is_cancelled).status()));
  Show(*opened, list, "the weights agree", context);
  return {};
}

}  // namespace

Status RunDigest(const DigestOptions& options, const CommandContext& context) {
  const IsCancelled is_cancelled = [&context] { return context.shutdown.IsPending(); };
  const std::string list = DigestListPath(options.model);
  return options.check ? Check(options.model, list, is_cancelled, context)
                       : Write(options.model, list, is_cancelled, context);
}

}  // namespace terrace
